"""Parts of the lab's real cluster that need no cluster: image archives, what containers trust, the pinned module."""

import json
import os
import tarfile
import tomllib
from pathlib import Path

from podidentity_lab.real import archive, machine, program


def test_the_same_files_make_the_same_archive(tmp_path: Path) -> None:
    """Times and the order of files do not change an image."""
    written = []
    for number in (1, 2):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name in ("b", "a")[:: 1 if number == 1 else -1]:
            (folder / name).write_text(name)
            os.utime(folder / name, (number, number))
        layer, target = folder / "layer", folder / "image.tar"
        archive.layer(((folder / name, f"usr/{name}") for name in ("a", "b")), layer)
        archive.write([archive.Image(["one:1"], [layer], ["/usr/a"])], target)
        written.append(target.read_bytes())
    assert written[0] == written[1]


def test_a_layer_that_two_images_share_is_there_once(tmp_path: Path) -> None:
    """A layer that two images share is stored once."""
    (tmp_path / "file").write_text("x")
    archive.layer([(tmp_path / "file", "file")], tmp_path / "layer")
    images = [archive.Image([f"{name}:1"], [tmp_path / "layer"], [name]) for name in ("nmi", "mic")]
    archive.write(images, tmp_path / "image.tar")
    with tarfile.open(tmp_path / "image.tar") as tar:
        names = tar.getnames()
        manifest = json.load(tar.extractfile("manifest.json") or open(os.devnull))  # noqa: PTH123, SIM115  # never None
    assert len([name for name in names if name.endswith(".tar")]) == 1
    assert [one["RepoTags"] for one in manifest] == [["nmi:1"], ["mic:1"]]


def test_everything_in_a_layer_is_roots(tmp_path: Path) -> None:
    """Files in a layer belong to root and have no names of the builder's account."""
    (tmp_path / "file").write_text("x")
    archive.layer([(tmp_path / "file", "opt/file")], tmp_path / "layer")
    with tarfile.open(tmp_path / "layer") as tar:
        assert {(one.uid, one.gid, one.uname, one.gname, one.mtime) for one in tar} == {(0, 0, "", "", 0)}


def test_a_container_trusts_the_labs_azure_and_keeps_all_else() -> None:
    """The node adds the file with the lab's CA and the variables that point to it, and changes nothing else."""
    spec = {"mounts": [{"destination": "/proc"}], "process": {"env": ["PATH=/bin"], "cwd": "/"}, "root": {}}
    told = machine.trusting(spec, Path("/run/ca.pem"))
    assert [one["destination"] for one in told["mounts"]] == ["/proc", machine.CERTIFICATES]
    assert told["process"]["env"][0] == "PATH=/bin"
    assert f"SSL_CERT_FILE={machine.CERTIFICATES}" in told["process"]["env"]
    assert told["process"]["cwd"] == "/"


def test_all_parts_of_kubernetes_are_of_one_release() -> None:
    """All modules of Kubernetes are of the same release: a mixture builds, but fails at runtime."""
    minor = program.version().removeprefix("v1.")
    lines = (program.SOURCE / "go.mod").read_text().split("replace (")[1].splitlines()
    assert {line.split()[-1] for line in lines if "=>" in line} == {f"v0.{minor}"}


def test_a_node_pulls_names_of_the_labs_registry_from_the_lab() -> None:
    """For each name of the lab's registry containerd has the lab's address, to pull only.

    The names are those of loopback, and a node's loopback is another one.
    """
    hosts = machine.registry_hosts(41000)
    assert set(hosts) == {"localhost:41000", "127.0.0.1:41000"}
    for text in hosts.values():
        content = tomllib.loads(text)
        assert content["server"] == "http://192.168.50.1:5000"
        assert content["host"] == {content["server"]: {"capabilities": ["pull", "resolve"]}}
