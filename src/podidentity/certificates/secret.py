"""The Secret with the CA: read and written by all replicas, each write on the version that was read.

    ca.crt, ca.key        the CA that signs; `ca.since` says since when
    next.crt, next.key    the one that will sign; `next.published` says since when the bundle with it is everywhere
    previous.crt          those that signed before, the latest first, and `cross.crt`, by which it vouches for `ca.crt`

The annotation `podidentity.io/replace-ca` orders a replacement, once for each new text; `podidentity.io/ca-replaced`
repeats the last text that was acted on.
"""

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cryptography import x509

from podidentity.certificates.authority import (
    Authority,
    cross_certificate,
    new_authority,
    read_authority,
    read_certificates,
    render_certificate,
    validity_of,
)
from podidentity.core.certificates.replacement import AuthorityState, Role, Schedule, Validity, trust_order
from podidentity.core.model.identities import ObjectKey
from podidentity.core.model.wording import some_of
from podidentity.errors import ConfigurationError, ConflictError, NotFoundError
from podidentity.kube.api import Api
from podidentity.kube.resources import SECRETS
from podidentity.timing import parse_rfc3339, render_rfc3339

WISH = "podidentity.io/replace-ca"
ANSWER = "podidentity.io/ca-replaced"
LABELS = {"app.kubernetes.io/managed-by": "podidentity"}

_NAMES_LIMIT = 3

Changes = Mapping[str, bytes | None]
"""New values of the Secret's keys; None takes a key away."""


@dataclass(frozen=True, slots=True)
class Authorities:
    """The Secret's content: the CA in use, its successor and predecessors. `values` is what it was read from."""

    values: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    wish: str = ""
    answer: str = ""
    current: Authority | None = None
    in_use_since: float = 0.0
    successor: Authority | None = None
    successor_published_at: float | None = None
    predecessors: tuple[x509.Certificate, ...] = ()
    cross_pem: bytes = b""

    @property
    def state(self) -> AuthorityState:
        """What the decisions are made from."""
        return AuthorityState(
            validity_of(self.current.certificate) if self.current else None,
            self.in_use_since,
            validity_of(self.successor.certificate) if self.successor else None,
            self.successor_published_at,
            len(self.predecessors),
            self.wish,
            self.answer,
        )

    def bundle(self, schedule: Schedule, now: float) -> str:
        """Return the certificates that clients must trust, as PEM, in their order."""
        certificates = {
            Role.CURRENT: (self.current.certificate,) if self.current else (),
            Role.SUCCESSOR: (self.successor.certificate,) if self.successor else (),
            Role.PREDECESSORS: self.predecessors,
        }
        order = trust_order(self.state, schedule, now)
        return b"".join(render_certificate(item) for role in order for item in certificates[role]).decode()


def creation(name: str, schedule: Schedule, now: float) -> Changes:
    """Return the changes that put a CA in use at once, in place of whatever there was."""
    authority = new_authority(name, Validity(now, now + schedule.authority_seconds))
    return {
        **dict.fromkeys(("next.crt", "next.key", "next.published", "previous.crt", "cross.crt")),
        "ca.crt": authority.certificate_pem,
        "ca.key": authority.key_pem,
        "ca.since": _render_time(now),
    }


def preparation(name: str, schedule: Schedule, now: float) -> Changes:
    """Return the changes that add a successor."""
    authority = new_authority(name, Validity(now, now + schedule.authority_seconds))
    return {"next.crt": authority.certificate_pem, "next.key": authority.key_pem, "next.published": None}


def publication(now: float) -> Changes:
    """Return the changes that note that the bundle with the successor is everywhere."""
    return {"next.published": _render_time(now)}


def promotion(authorities: Authorities, now: float) -> Changes:
    """Return the changes that let the successor sign; the key of the CA before it is dropped."""
    current, successor = authorities.current, authorities.successor
    if current is None or successor is None:
        raise ValueError("there is nothing to promote; ask next_step first")
    predecessors = (current.certificate, *authorities.predecessors)
    return {
        "ca.crt": successor.certificate_pem,
        "ca.key": successor.key_pem,
        "ca.since": _render_time(now),
        "previous.crt": b"".join(render_certificate(certificate) for certificate in predecessors),
        "cross.crt": cross_certificate(successor, current),
        **dict.fromkeys(("next.crt", "next.key", "next.published")),
    }


def retirement() -> Changes:
    """Return the changes that take the predecessors away."""
    return dict.fromkeys(("previous.crt", "cross.crt"))


class AuthoritySecret:
    """The Secret. Its last content is remembered: a deleted one is written back before clients notice."""

    def __init__(self, api: Api, key: ObjectKey) -> None:
        self._api = api
        self._key = key
        self._version = ""
        self._last = Authorities()
        self.restorations = 0
        """How often it was deleted or emptied by somebody and written back."""

    def __str__(self) -> str:
        return f"Secret {self._key}"

    async def read(self) -> Authorities:
        """Return the content; without a `current` when there is none yet.

        Raises KubernetesError; ConfigurationError when there is a content that is not ours or cannot be read.
        """
        try:
            document = await self._api.get(SECRETS.as_json(), self._key)
        except NotFoundError:
            document = {}
        self._version = (document.get("metadata") or {}).get("resourceVersion", "")
        authorities = self._parse(document)
        # Emptied or deleted while clients trust its CA: a new one would be a CA that nobody trusts yet.
        if authorities.current is None and self._last.current is not None:
            authorities = await self.write(self._last.values, answer=self._last.answer)
            self.restorations += 1
        self._last = authorities
        return authorities

    async def check_version(self) -> None:
        """Raise ConflictError when the Secret was changed since it was read or written here. Raises KubernetesError."""
        try:
            document = await self._api.get(SECRETS.as_json(), self._key)
        except NotFoundError:
            document = {"metadata": {}}
        if document["metadata"].get("resourceVersion", "") != self._version:
            raise ConflictError(f"{self}: it was changed meanwhile; read it again")

    async def write(self, changes: Changes, *, answer: str = "") -> Authorities:
        """Change the Secret, or create it; return the new content. ConflictError when somebody was faster."""
        data = {name: None if value is None else base64.b64encode(value).decode() for name, value in changes.items()}
        annotations = {ANSWER: answer} if answer else {}
        if self._version:
            metadata: dict[str, Any] = {"resourceVersion": self._version, "annotations": annotations}
            change = {"metadata": metadata, "data": data}
            document = await self._api.patch(SECRETS.as_json(), self._key, change)
        else:
            metadata = {**self._key._asdict(), "labels": LABELS, "annotations": annotations}
            values = {name: value for name, value in data.items() if value is not None}
            document = await self._api.create(
                SECRETS.as_json(), {"metadata": metadata, "type": "Opaque", "data": values}
            )
        self._version = document["metadata"]["resourceVersion"]
        self._last = self._parse(document)
        return self._last

    def _parse(self, document: Mapping[str, Any]) -> Authorities:
        annotations = (document.get("metadata") or {}).get("annotations") or {}
        wish, answer = annotations.get(WISH, ""), annotations.get(ANSWER, "")
        data = document.get("data") or {}
        if not data:
            return Authorities(wish=wish, answer=answer)
        try:
            values = {name: base64.b64decode(value, validate=True) for name, value in data.items()}
            return _parse_values(values, wish, answer)
        except (ValueError, TypeError) as error:
            raise ConfigurationError(
                f"{self}: {error}; restore it, or delete all its keys to have a new CA at once,"
                " which clients trust only when they have read the new bundle"
            ) from None


def _parse_values(values: Mapping[str, bytes], wish: str, answer: str) -> Authorities:
    if "ca.crt" not in values:
        raise ValueError(f"it has {some_of(sorted(values), _NAMES_LIMIT)}, but no ca.crt")
    has_successor, has_predecessors = "next.crt" in values, "previous.crt" in values
    return Authorities(
        values,
        wish,
        answer,
        _authority(values, "ca"),
        _parse_time(values, "ca.since") if has_predecessors else 0.0,
        _authority(values, "next") if has_successor else None,
        _parse_time(values, "next.published") if has_successor and "next.published" in values else None,
        _certificates(values, "previous.crt") if has_predecessors else (),
        values.get("cross.crt", b"") if has_predecessors else b"",
    )


def _authority(values: Mapping[str, bytes], name: str) -> Authority:
    try:
        return read_authority(values[f"{name}.crt"], values.get(f"{name}.key", b""))
    except ValueError as error:
        raise ValueError(f"{name}.crt and {name}.key: {error}") from error


def _certificates(values: Mapping[str, bytes], name: str) -> tuple[x509.Certificate, ...]:
    try:
        return read_certificates(values[name])
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _parse_time(values: Mapping[str, bytes], name: str) -> float:
    moment = parse_rfc3339(values.get(name, b"").decode("ascii", "replace"))
    if moment is None:
        raise ValueError(f"{name} is no time such as 2026-01-31T12:00:00Z")
    return moment


def _render_time(moment: float) -> bytes:
    return render_rfc3339(moment).encode()
