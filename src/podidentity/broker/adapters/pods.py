"""Pods, read from the API server."""

from podidentity.core.model.identities import ObjectKey
from podidentity.core.model.snapshot import Pod
from podidentity.errors import NotFoundError
from podidentity.kube.api import Api
from podidentity.kube.resources import SELECTED_PODS


class KubernetesPods:
    """Pods, one at a time."""

    def __init__(self, api: Api) -> None:
        self._api = api

    async def read_pod(self, namespace: str, name: str) -> Pod | None:
        """Return a pod; None when there is none. Raises `KubernetesError`."""
        try:
            return await self._api.get(SELECTED_PODS, ObjectKey(namespace, name))
        except NotFoundError:
            return None
