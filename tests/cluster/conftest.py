"""The order of the tests on the real cluster, which they share (`shared`), and the cluster with podidentity in it."""

import pytest

from cluster.harness import Cluster

# The order of the files: what has a cluster of its own, while there is no other; what installs nothing; what looks back
# at all of it last, but for what removes it and what kills the API server: one that just started forbids everything
# until it has read its roles.
# A way back lets pods through to the metadata service for a moment; most tests hold that no packet ever gets there.
FIRST = (
    "test_walk_through",
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


@pytest.fixture(scope="session")
def installed(cluster: Cluster) -> Cluster:
    """The cluster with podidentity as its README installs it."""
    cluster.install()
    return cluster
