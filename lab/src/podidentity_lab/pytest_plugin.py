"""A plugin of pytest: the lab's Azure for tests of applications that use managed identities.

pytest loads it wherever podidentity-lab is installed, so it imports the lab only when a test asks for it.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from podidentity_lab.testing import AzureLab, Faults, Identity, Vault


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the setting `azure_lab_seed`."""
    parser.addini("azure_lab_seed", "a file for `podidentity lab up --seed`, relative to this one", "paths", [])


@pytest.fixture(scope="session")
def azure_lab(pytestconfig: pytest.Config) -> Iterator["AzureLab"]:
    """An Azure and a Kubernetes on this machine; with pytest-xdist each worker has its own."""
    # Every pytest of an environment with the lab loads this file: those without such tests must not wait for imports.
    from podidentity.errors import PodIdentityError  # noqa: PLC0415
    from podidentity_lab import testing  # noqa: PLC0415

    worker = os.environ.get("PYTEST_XDIST_WORKER", "main")
    seeds = pytestconfig.getini("azure_lab_seed")
    with contextlib.ExitStack() as stack:
        try:
            lab = stack.enter_context(testing.running(f"pytest-{os.getpid()}-{worker}", seeds[0] if seeds else None))
        except PodIdentityError as error:
            pytest.fail(f"azure_lab: {error}", pytrace=False)
        yield lab


@pytest.fixture
def lab_identity(azure_lab: "AzureLab", monkeypatch: pytest.MonkeyPatch) -> "Identity":
    """A new managed identity without a role. For this test, this process and what it starts are that identity."""
    identity = azure_lab.create_identity()
    for name, value in azure_lab.changes(identity).items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    return identity


@pytest.fixture
def lab_vault(azure_lab: "AzureLab") -> "Vault":
    """A new vault that lets in by role, and nobody but the test yet."""
    return azure_lab.create_vault()


@pytest.fixture
def faults(azure_lab: "AzureLab") -> "Faults":
    """What Azure does wrong while the body of a `with` runs; its fields are those of `podidentity lab fault`."""
    return azure_lab.faults
