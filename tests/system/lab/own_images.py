"""Images of an application developer's own: of programs of this machine with their libraries, and by buildah."""

import io
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path


def programs(*names: str) -> bytes:
    """Return a layer of programs of this machine, with the libraries that they load."""
    paths = {path for path in map(shutil.which, names) if path}
    assert len(paths) == len(names), names
    for path in tuple(paths):
        told = subprocess.run(["ldd", path], capture_output=True, text=True, check=True).stdout
        paths |= {word for word in told.split() if word.startswith("/")}
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w") as archive:
        for path in sorted(paths):
            member = archive.gettarinfo(os.path.realpath(path), path.lstrip("/"))
            member.uid = member.gid = 0
            with Path(path).open("rb") as file:
                archive.addfile(member, file)
    return output.getvalue()


def buildah(folder: Path, *words: str) -> str:
    """Run buildah with a storage below `folder` and return what it prints."""
    where = ("--root", str(folder / "root"), "--runroot", str(folder / "run"), "--storage-driver", "vfs")
    done = subprocess.run(["buildah", *where, *words], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def container_of(folder: Path, layers: Sequence[bytes]) -> str:
    """Return a container of buildah's that has these layers."""
    container = buildah(folder, "from", "scratch")
    for number, layer in enumerate(layers):
        path = folder / f"{number}.tar"
        path.write_bytes(layer)
        buildah(folder, "add", container, str(path), "/")
    return container


def push(folder: Path, container: str, command: Sequence[str], name: str) -> None:
    """Push an image that runs `command` to a registry, over plain HTTP, under a name."""
    buildah(folder, "config", "--cmd", json.dumps(list(command)), container)
    buildah(folder, "commit", container, "app")
    buildah(folder, "push", "--tls-verify=false", "app", f"docker://{name}")
