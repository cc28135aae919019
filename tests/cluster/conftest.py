"""One real cluster for all tests here, or one sentence why there is none; with CI set that is a failure."""

import os
from collections.abc import Iterator

import pytest

from cluster.harness import Cluster, start
from podidentity.errors import PodIdentityError
from podidentity.lab.real import images, program, requirements

# The order of the files: what installs nothing comes first, what looks back at all of it last.
FIRST = ("test_manifests", "test_federation", "test_tokens", "test_updates")
LAST = ("test_joining", "test_rights")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests here share a cluster, so they have an order; and on a busy machine a cluster may take its time."""
    here = [item for item in items if item.path.parent.name == "cluster"]
    for item in here:
        item.add_marker(pytest.mark.timeout(900))
    ordered = iter(sorted(here, key=lambda item: _turn(item.path.stem)))
    items[:] = [next(ordered) if item in here else item for item in items]


def _turn(name: str) -> int:
    if name in FIRST:
        return FIRST.index(name)
    return len(FIRST) + (1 + LAST.index(name) if name in LAST else 0)


def _why_not() -> str | None:
    """Why there can be no real cluster here."""
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
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two nodes that are there and one that joins when a test says so; nothing installed."""
    why = _why_not()
    if why and os.environ.get("CI"):
        pytest.fail(why)
    if why:
        pytest.skip(f"NO REAL CLUSTER: {why}")
    home = tmp_path_factory.mktemp("labs")
    home.chmod(0o700)
    with start(home, "--nodes", "3", "--late", "1") as one:
        yield one


@pytest.fixture(scope="session")
def installed(cluster: Cluster) -> Cluster:
    """The cluster with podidentity as its README installs it."""
    cluster.install()
    return cluster
