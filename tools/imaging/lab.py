"""What the lab's images have besides podidentity's: the sample application with Azure's SDKs, and a small shell.

Called by `image`.
"""

import shutil
from pathlib import Path

from imaging import debian, python

APPLICATION = "opt/keyvault-app"
_APPLETS = ("sh", "cat", "chmod", "cp", "date", "echo", "env", "grep", "head", "hostname", "id", "ls", "mkdir", "nc")
_MORE_APPLETS = ("ping", "printf", "ps", "rm", "sed", "seq", "sleep", "sort", "tail", "test", "touch", "true", "wc")


def application(repository: Path, version: str, root: Path) -> None:
    """The walk-through's sample application below `root`, with the requirements of the group `examples`."""
    target = root / APPLICATION
    python.install(python.project(repository)["dependency-groups"]["examples"], version, repository, target)
    source = repository / "examples/keyvault-app/keyvault_app"
    shutil.copytree(source, target / source.name, ignore=shutil.ignore_patterns("__pycache__"))
    python.byte_compile([target], version, root)


def tools(cache: Path, root: Path) -> None:
    """A shell and what scripts of tests use, all of it busybox."""
    package = debian.download(["busybox-static"], cache / "tools")
    debian.extract(package[0], {"bin/busybox": "usr/bin/busybox", "usr/bin/busybox": "usr/bin/busybox"}, root)
    for name in (*_APPLETS, *_MORE_APPLETS):
        (root / "usr/bin" / name).symlink_to("busybox")
