"""What the broker needs from Kubernetes, as small Protocols."""

from collections.abc import Mapping
from typing import Any, Protocol

from podidentity.core.model.snapshot import Pod


class Reviews(Protocol):
    """Questions to the API server. Both return the `status` of the answer and raise `KubernetesError`."""

    async def review_token(self, assertion: str, audience: str) -> Mapping[str, Any]:
        """Ask whose a token is (TokenReview)."""

    async def review_access(self, spec: Mapping[str, Any]) -> Mapping[str, Any]:
        """Ask whether somebody may do something (SubjectAccessReview)."""


class Pods(Protocol):
    """Pods, one at a time."""

    async def read_pod(self, namespace: str, name: str) -> Pod | None:
        """Return a pod, read from the API server now; None when there is none. Raises `KubernetesError`."""
