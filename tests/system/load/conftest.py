"""Says once, loudly, why these tests cannot run where network namespaces may not be made."""

import pytest

from system.redirect.network import need_namespaces


@pytest.fixture(scope="session", autouse=True)
def _may_make_namespaces() -> None:
    need_namespaces()
