"""What a daemon does not use it does not load: a node with managed identities alone does not pay for Entra ID's."""

import subprocess
import sys

import pytest

LOADED = """
import sys
import podidentity.cli.main
import podidentity.cli.nmi
import podidentity.nmi.lifecycle
from podidentity.nmi.adapters.imds import open_imds_client
open_imds_client("test")
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


@pytest.fixture(scope="module")
def loaded() -> set[str]:
    """Top-level modules of a process that is about to be NMI."""
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, timeout=100, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "name", ["click", "msal", "cryptography", "requests", "jwt", "rich", "starlette", "uvicorn", "jsonschema"]
)
def test_nmi_starts_without_what_it_may_never_need(name: str, loaded: set[str]) -> None:
    """They are imported when the first service principal asks, or by other commands."""
    assert name not in loaded
