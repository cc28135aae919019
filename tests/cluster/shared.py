"""The one real cluster of a test run, for `tests/cluster` and the contract, or a sentence that says why there is none.

With CI set, that sentence is a failure. This is a plugin (`tests/conftest.py`), so that both folders share one cluster.
"""

import os
from collections.abc import Iterator

import pytest

from cluster.harness import Cluster, start
from podidentity.errors import PodIdentityError
from podidentity_lab.real import images, program, requirements


def _why_not() -> str | None:
    """Return why there can be no real cluster here, or None."""
    if os.geteuid() != 0:
        return "a real cluster needs root"
    if program.find() is None:
        return f"Kubernetes {program.version()} is not built: `make cluster-ready` builds it"
    try:
        images.archives()
        requirements.meet(lambda _: None, path=os.environ["PATH"], rootless=False)
    except PodIdentityError as error:
        return str(error)
    return None


@pytest.fixture(scope="session")
def possible() -> None:
    """Skip, or fail in CI, where no real cluster can be started."""
    why = _why_not()
    if why and os.environ.get("CI"):
        pytest.fail(why)
    if why:
        pytest.skip(f"NO REAL CLUSTER: {why}")


@pytest.fixture(scope="session")
def cluster(possible: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:  # noqa: ARG001  # or none
    """Two nodes, and one that joins when a test says so; nothing is installed."""
    home = tmp_path_factory.mktemp("labs")
    home.chmod(0o700)
    with start(home, "--nodes", "3", "--late", "1") as one:
        yield one
