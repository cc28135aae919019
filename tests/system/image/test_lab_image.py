"""The lab's image, as its Dockerfile makes it."""

import json

import pytest

from system.image.building import Buildah

SCRIPT = """
podidentity lab up --detach --nodes 1 >&2
eval "$(podidentity lab env)"
kubectl get nodes -o json
podidentity lab down >&2
"""
RIGHTS = "CAP_SYS_ADMIN,CAP_NET_ADMIN"
"""What a privileged container has, as far as the lab needs it."""


@pytest.mark.timeout(1800)
@pytest.mark.root
def test_a_lab_starts_in_its_container(buildah: Buildah) -> None:
    """A lab starts with the image's own programs; of this machine it has only the kernel."""
    image = buildah.build("podidentity-lab", "--file=lab/Dockerfile")
    container = buildah.run("from", "--pull-never", image)
    output = buildah.run("run", "--isolation=chroot", f"--cap-add={RIGHTS}", container, "--", "sh", "-ec", SCRIPT)
    assert [node["metadata"]["name"] for node in json.loads(output)["items"]] == ["node-0"]
