"""Says once, loudly, why these tests cannot run where network namespaces may not be made; what their files share."""

from collections.abc import Iterator

import pytest

from podidentity.nmi.adapters.redirect import Redirect
from system.redirect.acting import within
from system.redirect.network import Network, need_namespaces


@pytest.fixture(scope="session", autouse=True)
def _may_make_namespaces() -> None:
    need_namespaces()


@pytest.fixture
def network(shared: Network) -> Iterator[Network]:
    """The file's own network, with nothing of ours on its node before or after."""
    yield shared
    within(shared.node, Redirect.uninstall)
    shared.node.run("conntrack -F 2>/dev/null")
