"""The lab's user rotates the key that signs the cluster's tokens, through the lab's control socket."""

import asyncio
from collections.abc import Mapping, Sequence

from starlette.responses import Response
from starlette.testclient import TestClient

from contract.servers import TwoLines
from podidentity_lab import control
from podidentity_lab.kubernetes import Kubernetes


class Cluster:
    """An embedded Kubernetes without nodes."""

    def __init__(self) -> None:
        """Start with one key."""
        self.kubernetes = Kubernetes(TwoLines())

    def join(self, node: str, taints: Sequence[str]) -> None:
        """Take no node."""
        raise AssertionError(f"{node} {taints}")

    def save(self) -> dict[str, object]:
        """Return its objects."""
        return self.kubernetes.save()

    async def load_images(self, digests: Mapping[str, str]) -> None:
        """Take no image."""
        raise AssertionError(digests)

    async def rotate_issuer_key(self, phase: str) -> list[str]:
        """Take one step of the rotation."""
        return self.kubernetes.rotate_token_key(phase)


async def _status() -> dict[str, object]:
    return {}


def test_the_control_socket_rotates_the_key() -> None:
    """The answer to each step has the published key IDs; a step out of order gets 400 with a sentence."""
    door = control.application(_status, asyncio.Event(), Cluster(), Response())
    with TestClient(door) as http:
        refused = http.post("/issuer?phase=sign")
        assert (refused.status_code, "publish, sign, withdraw" in refused.json()["error"]) == (400, True)
        numbers = [len(http.post(f"/issuer?phase={phase}").json()["keys"]) for phase in ("publish", "sign", "withdraw")]
    assert numbers == [2, 2, 1]
