"""What an issuer publishes, judged as Entra ID reads it: address, openid-configuration, key set.

Fields: openid.net/specs/openid-connect-discovery-1_0.html, and what Entra ID refuses of them. Keys: RS256 alone.
"""

import ipaddress
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from podidentity.core.model.wording import some_of
from podidentity.core.report.findings import Finding, note, ok, problem

CONFIGURATION_PATH = "/.well-known/openid-configuration"
KEYS_PATH = "/openid/v1/jwks"
_PRIVATE_SUFFIXES = (".svc", ".local", ".internal", ".localhost", ".lan", ".home.arpa")
_KEY_IDS = 5
_MOVE = (
    "give the API server --service-account-issuer=https://... with an address where you publish both documents: "
    "podidentity issuer publish --issuer https://... --output-dir DIRECTORY"
)
_PUBLISH = "upload both documents again: podidentity issuer publish --output-dir DIRECTORY"
_FIELDS = {
    "response_types_supported": "id_token",
    "subject_types_supported": "public",
    "id_token_signing_alg_values_supported": "RS256",
}


@dataclass(frozen=True, slots=True)
class IssuerDocuments:
    """An issuer's openid-configuration and key set; `failure` says why the one that is None cannot be had."""

    configuration: Mapping[str, Any] | None = None
    keys: Mapping[str, Any] | None = None
    failure: str = ""


def configuration_of(issuer: str) -> dict[str, Any]:
    """Return the openid-configuration of an issuer that publishes its key set below its own address."""
    return {
        "issuer": issuer,
        "jwks_uri": issuer.rstrip("/") + KEYS_PATH,
        **{field: [value] for field, value in _FIELDS.items()},
    }


def refuse_address(issuer: str) -> str | None:
    """Return why Entra ID cannot fetch from an issuer's address; None when nothing speaks against it."""
    try:
        parts = urlsplit(issuer)
        host = (parts.hostname or "").rstrip(".")
        _ = parts.port  # raises for what is none
    except ValueError:
        return f'the issuer "{issuer}" is no address'
    if parts.scheme != "https" or not host:
        return f"the issuer {issuer} is no https address: Entra ID cannot fetch its keys"
    if parts.username or parts.query or parts.fragment:
        return f"the issuer {issuer} has a user, query or fragment, which no issuer may have"
    if not _is_public(host):
        return f"the issuer {issuer} is not public: Entra ID cannot fetch its keys from {host}"
    return None


def _is_public(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_global
    except ValueError:
        return "." in host and not host.endswith(_PRIVATE_SUFFIXES)


def judge_address(issuer: str) -> Finding:
    """Return the finding on an issuer's address."""
    refusal = refuse_address(issuer)
    return problem("issuer", refusal, _MOVE) if refusal else ok("issuer", f"{issuer} is a public https address")


def judge_signer(issuer: str, signer: str) -> Finding:
    """Return the finding on an issuer that is not the one with which the API server signs."""
    reason = ", which differs by the / at the end" if issuer.rstrip("/") == signer.rstrip("/") else ""
    message = f"the API server signs as {signer}{reason}: its tokens are not those of {issuer}"
    return problem("issuer", message, f"give the API server --service-account-issuer={issuer}")


def judge(issuer: str, published: IssuerDocuments, cluster: IssuerDocuments | None = None) -> tuple[Finding, ...]:
    """Return the findings on what `issuer` publishes, compared with what the API server says where that is given."""
    findings = [*_configuration(issuer, published)]
    if published.configuration is not None:
        findings += _keys(published, cluster)
    return tuple(findings)


def _configuration(issuer: str, published: IssuerDocuments) -> Iterator[Finding]:
    configuration = published.configuration
    if configuration is None:
        yield problem("document", f"the openid-configuration cannot be had: {published.failure}", _PUBLISH)
        return
    faults = [*_faults(issuer, configuration)]
    for fault in faults:
        yield problem("document", f"the openid-configuration of {issuer}: {fault}", _PUBLISH)
    if not faults:
        yield ok("document", f"{issuer.rstrip('/')}{CONFIGURATION_PATH} is as Entra ID reads it")


def _faults(issuer: str, configuration: Mapping[str, Any]) -> Iterator[str]:
    text = configuration.get("issuer")
    if text != issuer:
        reason = ": they differ by the / at the end" if str(text).rstrip("/") == issuer.rstrip("/") else ""
        yield f"its issuer is {text}, and must be letter for letter {issuer}{reason}"
    if not str(configuration.get("jwks_uri", "")).startswith("https://"):
        yield f"its jwks_uri is {configuration.get('jwks_uri')}, and must be an https address"
    for field, value in _FIELDS.items():
        values = configuration.get(field)
        if not isinstance(values, list) or value not in values:
            yield f"its {field} lacks {value}"
    if configuration.get("authorization_endpoint") == "":
        yield "its authorization_endpoint is empty, which Entra ID refuses"


def _keys(published: IssuerDocuments, cluster: IssuerDocuments | None) -> Iterator[Finding]:
    if published.keys is None:
        yield problem("keys", f"the key set cannot be had: {published.failure}", _PUBLISH)
        return
    keys, faults = _read_keys(published.keys)
    for fault in faults:
        yield problem("keys", fault, _PUBLISH)
    if not keys:
        yield problem("keys", "the key set has no RSA key: Entra ID takes RS256 alone", _PUBLISH)
    elif cluster is None or cluster.keys is None:
        yield ok("keys", f"{len(keys)} RSA keys are published: {some_of(sorted(keys), _KEY_IDS)}")
    else:
        yield from _compare(keys, _read_keys(cluster.keys)[0])


def _compare(published: Mapping[str, tuple[str, str]], cluster: Mapping[str, tuple[str, str]]) -> Iterator[Finding]:
    missing = sorted(kid for kid in cluster if kid not in published)
    different = sorted(kid for kid, key in cluster.items() if kid in published and published[kid] != key)
    surplus = sorted(kid for kid in published if kid not in cluster)
    if missing:
        message = f"the API server has keys that are not published: {some_of(missing, _KEY_IDS)}"
        yield problem("keys", f"{message}; Entra ID refuses what they sign", _PUBLISH)
    if different:
        message = f"published under the same ID, but not the API server's: {some_of(different, _KEY_IDS)}"
        yield problem("keys", message, _PUBLISH)
    if surplus:
        message = f"published, but not among the API server's keys: {some_of(surplus, _KEY_IDS)}"
        yield note("keys", message, "right while keys are exchanged; else whoever has such a key makes tokens")
    if not missing and not different:
        yield ok("keys", f"all {len(cluster)} keys of the API server are published")


def _read_keys(key_set: Mapping[str, Any]) -> tuple[dict[str, tuple[str, str]], list[str]]:
    """Return modulus and exponent of each usable key by its ID, and what is wrong with the others."""
    items = key_set.get("keys")
    keys: dict[str, tuple[str, str]] = {}
    faults: list[str] = []
    for item in items if isinstance(items, list) else ():
        kid, key = _read_key(item)
        if not kid:
            faults.append("the key set has a key without kid: no token can name it")
        elif key is None:
            faults.append(f"key {kid} is no RSA key for RS256: Entra ID ignores it")
        else:
            keys[kid] = key
    return keys, faults


def _read_key(item: Any) -> tuple[str, tuple[str, str] | None]:
    fields = item if isinstance(item, Mapping) else {}
    is_usable = (
        fields.get("kty") == "RSA" and fields.get("alg", "RS256") == "RS256" and fields.get("use", "sig") == "sig"
    )
    key = (str(fields["n"]), str(fields["e"])) if is_usable and fields.get("n") and fields.get("e") else None
    return str(fields.get("kid") or ""), key
