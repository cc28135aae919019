"""For all tests: asynchronous ones run on asyncio, and hypothesis has no deadline: properties are not about speed.

A test that waits is an `async def test_...`. `asyncio.run` is for code that runs elsewhere: in a thread of another
network namespace, in a program of its own; test_house.py lists these files. MIC's scenarios are coroutines that the
fixtures of daemons/mic run in a fresh world.
"""

import pytest
from hypothesis import settings

pytest_plugins = ["cluster.shared"]

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture
def anyio_backend() -> str:
    """Run asynchronous tests on asyncio's own loop; `loops` has the one of the daemons."""
    return "asyncio"
