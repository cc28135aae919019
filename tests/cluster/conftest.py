"""The order of the tests on the real cluster, which they share (`shared`), and the cluster with podidentity in it."""

import pytest

from cluster.harness import Cluster

# The order of the files: first those with a cluster of their own, while there is no other; then those that install
# nothing. Files that examine what all others did come late, before those that remove podidentity and the one that kills
# the API server: until a new one has read its roles, it forbids everything.
# A way back to aad-pod-identity lets pods reach the metadata service for a moment, and most tests hold that no packet
# ever gets there.
FIRST = (
    "test_walk_through",
    "test_off_azure",
    "test_manifests",
    "test_startup_taint",
    "test_helm",
    "test_new",
    "test_federation",
    "test_broker",
    "test_webhook",
    "test_doors",
    "test_tokens",
    "test_updates",
)
LAST = (
    "test_joining",
    "test_rights",
    "test_api_server",
    "test_migration",
    "test_modes",
    "test_helm_migration",
    "test_moving",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the tests, which share a cluster, and give each a time limit for a busy machine."""
    here = [item for item in items if item.path.parent.name == "cluster"]
    for item in here:
        item.add_marker(pytest.mark.timeout(900))
    ordered = iter(sorted(here, key=lambda item: _turn(item.path.stem)))
    items[:] = [next(ordered) if item in here else item for item in items]


def _turn(name: str) -> int:
    if name in FIRST:
        return FIRST.index(name)
    return len(FIRST) + (1 + LAST.index(name) if name in LAST else 0)


@pytest.fixture(scope="session")
def installed(cluster: Cluster) -> Cluster:
    """The cluster with podidentity as its README installs it."""
    cluster.install()
    return cluster
