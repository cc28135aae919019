"""Where clients find the bundle: in ConfigMaps, and in a webhook's configuration.

Each place is read, and written only when it differs, on the version that was read: what somebody else wrote there is
put right. A place that cannot be written does not keep the bundle from the others.
"""

import base64
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

from podidentity.core.model.identities import ObjectKey
from podidentity.errors import ConflictError, KubernetesError, NotFoundError, ThrottledError, UnreachableError
from podidentity.kube.api import Api
from podidentity.kube.resources import CONFIG_MAPS, MUTATING_WEBHOOKS

BUNDLE_KEY = "ca.crt"
"""The ConfigMap's key with the bundle, as in `kube-root-ca.crt`."""
LABELS = {"app.kubernetes.io/managed-by": "podidentity"}
_TRIES = 3

Outcomes = Mapping[str, KubernetesError | None]
"""Each place, as it is named in a log, with the error by which it refused the bundle; None when it has it."""
Check = Callable[[], Awaitable[None]]
"""Raises ConflictError when the bundle is no longer the newest.

Called between the read and the write of a place: an old bundle can then never replace a newer one.
"""


class Publication(Protocol):
    """Places that carry the bundle."""

    async def publish(self, api: Api, bundle: str, check: Check) -> Outcomes:
        """Bring `bundle` to every place; return what came of it. A refusal does not keep it from the others.

        Raises ConflictError from `check`, ThrottledError, and UnreachableError: then all is to be done again.
        """
        ...


@dataclass(frozen=True, slots=True)
class BundleConfigMaps:
    """A ConfigMap of one name in each of some namespaces, which may be others at each call."""

    name: str
    namespaces: Callable[[], Collection[str]]

    async def publish(self, api: Api, bundle: str, check: Check) -> Outcomes:
        """Bring `bundle` into every namespace."""
        places = {
            f"ConfigMap {key}": _ConfigMapPlace(api, key)
            for key in (ObjectKey(namespace, self.name) for namespace in sorted(self.namespaces()))
        }
        return await _publish(places, bundle, check)


@dataclass(frozen=True, slots=True)
class BundleWebhook:
    """`clientConfig.caBundle` of every webhook in one MutatingWebhookConfiguration, which has to exist."""

    name: str

    async def publish(self, api: Api, bundle: str, check: Check) -> Outcomes:
        """Bring `bundle` into the configuration."""
        places = {f"MutatingWebhookConfiguration {self.name}": _WebhookPlace(api, ObjectKey("", self.name))}
        return await _publish(places, bundle, check)


class _Place(Protocol):
    async def write(self, bundle: str, check: Check) -> None:
        """Read, compare, and write if need be. Raises KubernetesError."""
        ...


@dataclass(frozen=True, slots=True)
class _ConfigMapPlace:
    api: Api
    key: ObjectKey

    async def write(self, bundle: str, check: Check) -> None:
        try:
            document = await self.api.get(CONFIG_MAPS, self.key)
        except NotFoundError:
            await check()
            metadata = {**self.key._asdict(), "labels": LABELS}
            await self.api.create(CONFIG_MAPS, {"metadata": metadata, "data": {BUNDLE_KEY: bundle}})
            return
        if (document.get("data") or {}).get(BUNDLE_KEY) == bundle:
            return
        await check()
        version = {"resourceVersion": document["metadata"]["resourceVersion"]}
        await self.api.patch(CONFIG_MAPS, self.key, {"metadata": version, "data": {BUNDLE_KEY: bundle}})


@dataclass(frozen=True, slots=True)
class _WebhookPlace:
    api: Api
    key: ObjectKey

    async def write(self, bundle: str, check: Check) -> None:
        document = await self.api.get(MUTATING_WEBHOOKS, self.key)
        text = base64.b64encode(bundle.encode()).decode()
        changes = [
            {"op": "add", "path": f"/webhooks/{number}/clientConfig/caBundle", "value": text}
            for number, webhook in enumerate(document.get("webhooks") or ())
            if webhook["clientConfig"].get("caBundle") != text
        ]
        if not changes:
            return
        await check()
        # The version in the patched object has to be the stored one: otherwise the API server answers 409.
        version = {
            "op": "replace",
            "path": "/metadata/resourceVersion",
            "value": document["metadata"]["resourceVersion"],
        }
        await self.api.patch(MUTATING_WEBHOOKS, self.key, [version, *changes])


async def _publish(places: Mapping[str, _Place], bundle: str, check: Check) -> Outcomes:
    outcomes: dict[str, KubernetesError | None] = dict.fromkeys(places)
    for name, place in places.items():
        try:
            await _write(place, bundle, check)
        except (ConflictError, ThrottledError, UnreachableError):
            raise
        except KubernetesError as error:
            outcomes[name] = error
    return outcomes


async def _write(place: _Place, bundle: str, check: Check) -> None:
    """Put the bundle into a place; begin again when somebody else wrote there at the same time."""
    for remaining in reversed(range(_TRIES)):
        try:
            await place.write(bundle, check)
        except ConflictError:
            if not remaining:
                raise
            await check()
        else:
            return
