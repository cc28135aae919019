"""Fixtures of the Kubernetes client's tests: a scripted API server on loopback, a clock that jumps, and a client."""

from collections.abc import AsyncIterator

import pytest

from clocks import JumpingClock
from daemons.kube.scripted import ScriptedServer
from podidentity.kube.api import Api
from podidentity.kube.connection import find_cluster, open_client


@pytest.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    """Return a scripted API server that listens."""
    async with ScriptedServer.listening() as listening:
        yield listening


@pytest.fixture
def clock() -> JumpingClock:
    """Return a clock that jumps."""
    return JumpingClock()


@pytest.fixture
async def api(
    server: ScriptedServer, clock: JumpingClock, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Api]:
    """Return an Api that talks to the scripted server."""
    path = server.write_kubeconfig(tmp_path_factory.mktemp("kube"))
    async with open_client(find_cluster(str(path)), clock=clock) as http:
        yield Api(http, clock)
