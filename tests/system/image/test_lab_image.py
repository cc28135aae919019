"""The lab's images, as their Dockerfiles make them: the small one, and the one with a real Kubernetes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from podidentity_lab.real import images, program
from system.image import privileged
from system.image.building import REPOSITORY, Buildah

pytestmark = [pytest.mark.root, pytest.mark.timeout(1800)]
SCRIPT = """
podidentity lab up --detach --nodes 1 >&2
eval "$(podidentity lab env)"
kubectl get nodes -o json
podidentity lab down >&2
"""
REAL_SCRIPT = """
podidentity lab up --kubernetes real --detach --nodes 1 >&2
eval "$(podidentity lab env)"
kubectl run hello --image=podidentity/lab-tools:1 --restart=Never -- echo hello >&2
kubectl wait --for=jsonpath='{.status.phase}'=Succeeded pod/hello --timeout=120s >&2
kubectl logs hello
podidentity lab down >&2
"""
RIGHTS = "CAP_SYS_ADMIN,CAP_NET_ADMIN"
"""What a privileged container has, as far as the lab needs it."""


@pytest.fixture(scope="module")
def image(buildah: Buildah) -> str:
    """The small image."""
    return buildah.build("podidentity-lab", "--file=lab/Dockerfile")


@pytest.fixture(scope="module")
def real_image(buildah: Buildah, image: str) -> str:
    """The image with a real Kubernetes, of the programs and archives that this checkout has built."""
    folder = program.ensure(print).folder
    subprocess.run([sys.executable, str(REPOSITORY / "tools/image.py")], check=True)
    volumes = [f"--volume={path}:{program.PREBUILT / path.name}:ro" for path in (folder, *images.archives())]
    return buildah.build("podidentity-lab-real", "--file=lab/real.Dockerfile", f"--build-arg=LAB={image}", *volumes)


def test_a_lab_starts_in_its_container(buildah: Buildah, image: str) -> None:
    """A lab starts with the image's own programs; of this machine it has only the kernel."""
    output = buildah.run_in(image, RIGHTS, SCRIPT)
    assert [node["metadata"]["name"] for node in json.loads(output)["items"]] == ["node-0"]


def test_a_real_cluster_starts_in_its_container(buildah: Buildah, real_image: str, tmp_path: Path) -> None:
    """It has all programs and images: nothing is compiled, and there is no network to fetch anything from."""
    config = json.loads(buildah.run("inspect", "--type=image", real_image))["OCIv1"]["config"]
    assert (config["Entrypoint"][-1], config["Cmd"][:3]) == ("lab", ["up", "--kubernetes", "real"])
    variables = dict(item.split("=", 1) for item in config["Env"])
    command = [*config["Entrypoint"][:2], "sh", "-ec", REAL_SCRIPT]
    assert privileged.run(buildah.root(real_image), command, variables, tmp_path) == "hello\n"
