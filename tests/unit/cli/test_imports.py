"""A daemon loads only modules that it uses: a node without service principals does not load their libraries."""

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
    """Return the top-level modules of a process that is about to be NMI."""
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, timeout=100, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "name", ["click", "msal", "cryptography", "requests", "jwt", "rich", "starlette", "uvicorn", "jsonschema"]
)
def test_nmi_starts_without_what_it_may_never_need(name: str, loaded: set[str]) -> None:
    """These modules are imported with the first service principal, or by other commands."""
    assert name not in loaded
