"""Runs the daemon's command in a namespace, with only some programs on its PATH."""

import shutil
import subprocess
import sys
from pathlib import Path

from system.redirect.network import Namespace


def run_in(host: Namespace, path: str, *flags: str) -> tuple[int, str]:
    """Run the daemon's command with only these programs on PATH: its exit status and what it wrote."""
    command = [sys.executable, "-m", "podidentity", "nmi", "--node=n1", *flags]
    done = host.call(
        lambda: subprocess.run(
            command,
            env={"PATH": path},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    )
    return done.returncode, done.stdout + done.stderr


def programs(directory: Path, *names: str) -> str:
    """Make a PATH with these programs alone."""
    for name in names:
        found = shutil.which(name)
        assert found is not None
        (directory / name).symlink_to(found)
    return str(directory)
