"""Parts of the lab's real cluster that need no cluster: image archives, what containers trust, the pinned module."""

import json
import os
import tarfile
import tomllib
from pathlib import Path

import pytest

from podidentity.errors import LabError
from podidentity_lab.oci.store import Store
from podidentity_lab.real import archive, directories, images, machine, program
from unit.lab import oci_archives as make


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


def test_a_node_pulls_from_the_lab_alone() -> None:
    """For each name of the lab's registry, and for all other registries, containerd has the lab's address.

    To pull only. The names are those of loopback, and a node's loopback is another one.
    """
    hosts = machine.registry_hosts(41000)
    assert set(hosts) == {"localhost:41000", "127.0.0.1:41000", "_default"}
    for text in hosts.values():
        content = tomllib.loads(text)
        assert content["server"] == "http://192.168.50.1:5000"
        assert content["host"] == {content["server"]: {"capabilities": ["pull", "resolve"]}}


def test_what_an_image_brings_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the user's cache and a checkout have nothing, the lab's image has the program and the archives."""
    prebuilt = tmp_path / "prebuilt"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(program, "PREBUILT", prebuilt)
    monkeypatch.setattr(images, "PREBUILT", prebuilt)
    monkeypatch.setattr(images, "_BUILD", tmp_path / "build")
    assert program.find() is None
    with pytest.raises(LabError, match="`make image` makes them"):
        images.archives()
    (prebuilt / program.place().name).mkdir(parents=True)
    for name in images.NAMES:
        (prebuilt / name).touch()
    found = program.find()
    assert found is not None
    assert found.component("kubelet") == str(prebuilt / program.place().name / "kubelet")
    assert images.archives() == tuple(prebuilt / name for name in images.NAMES)


def test_a_directory_becomes_an_image(tmp_path: Path) -> None:
    """It is a layer over the image of the lab's tools, under its own path; its program `run` is the entry point."""
    folder, store = tmp_path / "app", Store(tmp_path / "store")
    folder.mkdir()
    (folder / "run").write_text("#!/bin/sh\n")
    (tmp_path / "data").mkdir()
    tools = make.write(tmp_path / "lab-images.tar", make.docker_files([b"layer"], [directories.BASE], Env=["A=b"]))
    digests = directories.store({"my-app": folder, "quay.io/me/data": tmp_path / "data"}, [tools], store)
    assert set(digests) == {"docker.io/library/my-app", "quay.io/me/data"}
    manifest, other = (store.read_json(digests[name]) for name in sorted(digests))
    configuration = store.read_json(manifest["config"]["digest"])
    assert configuration["config"] == {"Env": ["A=b"], "Entrypoint": [str(folder / "run")]}
    assert configuration["rootfs"]["diff_ids"] == [item["digest"] for item in manifest["layers"]]
    with tarfile.open(store.blob(manifest["layers"][1]["digest"])) as layer:
        assert str(folder / "run").lstrip("/") in layer.getnames()
    assert store.read_json(other["config"]["digest"])["config"] == {"Env": ["A=b"]}
    with pytest.raises(LabError, match="podidentity/lab-tools:1 is not in them"):
        directories.store({"my-app": folder}, [], store)
    assert directories.store({}, [], store) == {}
