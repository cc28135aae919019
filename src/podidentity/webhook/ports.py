"""What the webhook needs from Kubernetes, as a small Protocol."""

from collections.abc import Mapping
from typing import Protocol


class Accounts(Protocol):
    """Service accounts, one at a time."""

    async def annotations_of(self, namespace: str, name: str) -> Mapping[str, str] | None:
        """Return a service account's annotations; None when there is none. Raises `KubernetesError`."""
