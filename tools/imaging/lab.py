"""The layers of the lab's images: the sample application with Azure's SDKs, and a small shell."""

import shutil
import tempfile
from pathlib import Path

from imaging import debian, python

APPLICATION = "opt/keyvault-app"
BUSYBOX = Path(__file__).with_name("busybox.paths")
_APPLETS = ("sh", "cat", "chmod", "cp", "date", "echo", "env", "grep", "head", "hostname", "id", "ls", "mkdir", "nc")
_MORE_APPLETS = ("ping", "printf", "ps", "rm", "sed", "seq", "sleep", "sort", "tail", "test", "touch", "true", "wc")


def application(repository: Path, system: Path, root: Path) -> None:
    """Write the walk-through's sample application below `root`, with the requirements of the group `examples`."""
    target = root / APPLICATION
    python.install(python.project(repository)["dependency-groups"]["examples"], repository, target)
    source = repository / "examples/keyvault-app/keyvault_app"
    shutil.copytree(source, target / source.name, ignore=shutil.ignore_patterns("__pycache__"))
    python.byte_compile(system, root, [APPLICATION])


def tools(root: Path) -> None:
    """Write a shell and the programs that tests' scripts use below `root`, all of them busybox."""
    with tempfile.TemporaryDirectory() as folder:
        debian.extract(["busybox-static"], BUSYBOX, Path(folder) / "root")
        program = root / "usr/bin/busybox"
        program.parent.mkdir(parents=True)
        shutil.copy(Path(folder) / "root/bin/busybox", program)
    for name in (*_APPLETS, *_MORE_APPLETS):
        (root / "usr/bin" / name).symlink_to("busybox")
