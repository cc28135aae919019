"""The event loop of the daemons, for tests of sockets, their limits and their ends."""

from typing import Any

import pytest


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """Run asynchronous tests on uvloop; a test module that imports this name has all of its own run there."""
    return "asyncio", {"use_uvloop": True}
