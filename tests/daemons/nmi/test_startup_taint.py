"""NMI removes the node's start-up taint once pods are intercepted, and not before."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from clocks import JumpingClock
from daemons.kube.scripted import Reply, Request, ScriptedServer
from podidentity.kube.api import Api
from podidentity.kube.connection import find_cluster, open_client
from podidentity.nmi.adapters.startup_taint import remove_startup_taint
from waiting import eventually

pytestmark = pytest.mark.anyio

PATH = "/api/v1/nodes/n1"
STARTUP_TAINT = {"key": "podidentity.io/starting", "effect": "NoSchedule"}
OTHER = {"key": "example.com/other", "value": "x", "effect": "NoExecute"}


@pytest.fixture
def anyio_backend() -> str:
    """Run on asyncio, as the daemon does."""
    return "asyncio"


@asynccontextmanager
async def removing(
    directory: Path, taints: list[dict[str, str]] | None, ready: Callable[[], bool] = lambda: True
) -> AsyncIterator[tuple[ScriptedServer, "asyncio.Task[None]", JumpingClock]]:
    """Run the removal of the start-up taint from a node."""
    async with ScriptedServer.listening() as server:
        server.put(PATH, {"metadata": {"name": "n1"}, "spec": {"taints": taints} if taints is not None else {}})
        clock = JumpingClock()
        async with open_client(find_cluster(str(server.write_kubeconfig(directory)))) as http:
            task = asyncio.create_task(remove_startup_taint(Api(http), "n1", STARTUP_TAINT["key"], ready, clock))
            try:
                yield server, task, clock
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)


def patches(server: ScriptedServer) -> list[Any]:
    """Return the patches that were sent."""
    return [json.loads(request.body) for request in server.requests if request.method == "PATCH"]


async def test_it_goes_only_after_the_self_test(tmp_path: Path) -> None:
    """Before the self-test the API server is not asked; then only this taint goes, guarded by the node's version."""
    stands = False
    async with removing(tmp_path, [OTHER, STARTUP_TAINT], lambda: stands) as (server, task, clock):
        await eventually(lambda: len(clock.slept) > 20, "it waits")
        assert server.requests == []
        stands = True
        await asyncio.wait_for(task, 10)
        assert patches(server) == [{"metadata": {"resourceVersion": "101"}, "spec": {"taints": [OTHER]}}]


@pytest.mark.parametrize("taints", [None, [], [OTHER]])
async def test_a_node_without_it_is_left_alone(tmp_path: Path, taints: list[dict[str, str]] | None) -> None:
    """Where the node lacks the taint, NMI writes nothing to it."""
    async with removing(tmp_path, taints) as (server, task, _):
        await asyncio.wait_for(task, 10)
        assert patches(server) == []


async def test_somebody_elses_write_is_read_again(tmp_path: Path) -> None:
    """After a 409 the node is read again, and the taint removed from what is there now."""
    async with removing(tmp_path, [STARTUP_TAINT]) as (server, task, _):

        def is_patch(request: Request) -> bool:
            return request.method == "PATCH"

        server.answer_next(Reply.refusal(409, "the object has been modified"), to=is_patch)
        await asyncio.wait_for(task, 10)
        assert [patch["spec"] for patch in patches(server)] == [{"taints": None}] * 2
        assert server.count("GET") == 2


async def test_a_missing_right_is_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With upstream's role, which lacks the right, NMI warns once, and removes the taint once it has the right."""
    async with removing(tmp_path, [STARTUP_TAINT]) as (server, task, clock):
        for _ in range(3):
            server.answer_next(Reply.refusal(403, "nodes is forbidden"), to=lambda request: request.path == PATH)
        await asyncio.wait_for(task, 10)
        assert len(patches(server)) == 1
        assert clock.slept.count(60.0) == 3
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1
    assert "get nodes n1" in warnings[0]
    assert "allow it in the role" in warnings[0]
