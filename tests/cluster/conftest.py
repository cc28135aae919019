"""One real cluster for all tests here, or one sentence why there is none; with CI set that is a failure."""

import os
from collections.abc import Iterator

import pytest

from cluster.harness import Cluster, start
from podidentity.errors import PodIdentityError
from podidentity.lab.real import images, program, requirements


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests on a cluster run programs of a whole cluster on a busy machine: their limit is generous."""
    for item in items:
        if "tests/cluster/" in str(item.path):
            item.add_marker(pytest.mark.timeout(600))


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
    with start(home) as one:
        yield one


@pytest.fixture(scope="session")
def installed(cluster: Cluster) -> Cluster:
    """The cluster with podidentity as its README installs it."""
    cluster.install()
    return cluster
