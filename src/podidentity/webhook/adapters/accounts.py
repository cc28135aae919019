"""Annotations of service accounts, read from the API server and kept for two seconds.

Read, not watched: a cluster has as many service accounts as it likes, of which few are of labelled pods. Two seconds
serve the pods of one rollout.
"""

from collections.abc import Mapping

from podidentity.bounded import BoundedDict, SingleFlight
from podidentity.core.model.identities import ObjectKey
from podidentity.errors import NotFoundError
from podidentity.kube.api import Api
from podidentity.kube.resources import SERVICE_ACCOUNTS
from podidentity.timing import Clock

KEEP_SECONDS = 2.0
_ACCOUNTS = 1024

Annotations = Mapping[str, str] | None


class KubernetesAccounts:
    """Service accounts of the cluster."""

    def __init__(self, api: Api, clock: Clock) -> None:
        self._api = api
        self._clock = clock
        self._entries: BoundedDict[ObjectKey, tuple[float, Annotations]] = BoundedDict(_ACCOUNTS)
        self._flights: SingleFlight[ObjectKey, Annotations] = SingleFlight()

    async def annotations_of(self, namespace: str, name: str) -> Annotations:
        """Return a service account's annotations; None when there is none. Raises `KubernetesError`."""
        key = ObjectKey(namespace, name)
        until, annotations = self._entries.get(key, (0.0, None))
        if self._clock.steady() < until:
            return annotations
        return await self._flights.run(key, lambda: self._read(key))

    async def _read(self, key: ObjectKey) -> Annotations:
        try:
            annotations: Annotations = (await self._api.get(SERVICE_ACCOUNTS, key)).annotations
        except NotFoundError:
            return None  # not kept: whoever creates it next shall not wait
        self._entries[key] = self._clock.steady() + KEEP_SECONDS, annotations
        return annotations
