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
    """Two nodes, and one that joins when a test says so; nothing is installed. A directory is the image `my-app`."""
    home = tmp_path_factory.mktemp("labs")
    home.chmod(0o700)
    application = tmp_path_factory.mktemp("application")
    (application / "greeting").write_text("hello from a directory\n")
    script = application / "run"
    script.write_text('#!/bin/sh\ncat "${0%/*}/greeting"\n')
    script.chmod(0o755)
    with start(home, "--nodes", "3", "--late", "1", PODIDENTITY_LAB_IMAGES=f"my-app={application}") as one:
        yield one
