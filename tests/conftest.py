"""For all tests: asynchronous ones run on asyncio; a property is about truth, not speed, so hypothesis has no deadline.

Whatever waits is an `async def test_...`. `asyncio.run` is for code that runs elsewhere: in a thread of another network
namespace, in a program of its own. Stories of MIC are functions that the fixtures of daemons/mic run in a fresh world.
"""

import pytest
from hypothesis import settings

pytest_plugins = ["cluster.shared"]

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture
def anyio_backend() -> str:
    """Run asynchronous tests on asyncio's own loop; `loops` has the daemons'."""
    return "asyncio"
