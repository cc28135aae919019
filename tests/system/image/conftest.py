"""The program that builds images from Dockerfiles."""

import os
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from system.image.building import BASE, Buildah
from system.lab.running import missing


@pytest.fixture(scope="package")
def buildah(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Buildah]:
    """Buildah, and in its storage a Debian that mmdebstrap made."""
    if os.geteuid() != 0:
        missing("buildah's chroot isolation needs root")
    if not shutil.which("buildah"):
        missing("buildah is not installed")
    storage = tmp_path_factory.mktemp("buildah")
    tool = Buildah(storage)
    packages = storage / "debian.tar"
    debian = ["mmdebstrap", "--quiet", "--variant=minbase", "--skip=output/dev", "bookworm", str(packages)]
    subprocess.run(debian, check=True, capture_output=True)
    container = tool.run("from", "scratch")
    tool.run("add", container, str(packages), "/")
    tool.run("commit", "--rm", container, BASE)
    packages.unlink()
    yield tool
    shutil.rmtree(storage)
