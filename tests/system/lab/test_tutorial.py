"""The tutorial, as a reader does it: every block of commands, one after the other, in one shell."""

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from podidentity.errors import LabError
from podidentity_lab import down
from podidentity_lab.directory import find

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]
REPOSITORY = Path(__file__).parents[3]
PAGE = REPOSITORY / "docs/tutorial/first-token.md"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory for labs; a lab that is still up afterwards is ended."""
    folder = tmp_path / "labs"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("PODIDENTITY_LAB_HOME", str(folder))
    return folder


def test_the_tutorial_works(home: Path) -> None:
    """It ends with status 0, and the pod got a token of the identity that was made for it, as its reader sees."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 6
    script = "set -euo pipefail\n" + "\n".join(blocks)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PODIDENTITY_LAB_HOME": str(home)}
    try:
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=REPOSITORY,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )
    finally:
        with contextlib.suppress(LabError):  # its last block ended it
            down.stop(find("tutorial"))
    assert done.returncode == 0, done.stdout + done.stderr
    client_id = re.search(r"^reader is (\S+)$", done.stdout, re.MULTILINE)
    assert client_id
    assert f"a token of {client_id[1]}\n" in done.stdout
    assert done.stdout.count("no AzureIdentityBinding has the selector reader") == 2
