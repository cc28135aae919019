"""Images of an application developer's own on every node of a real cluster: loaded, pushed, and directories."""

import itertools
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from cluster.harness import Cluster, until
from system.lab.own_images import container_of, programs, push
from system.lab.running import Json, missing
from unit.lab import oci_archives as make

NODES = ("node-0", "node-1")
_numbers = itertools.count()


@pytest.fixture(scope="module")
def layers() -> Sequence[bytes]:
    """A shell, and over it a file of the application."""
    return programs("sh", "cat"), make.tar({"app/greeting": "hello"})


def pod(name: str, image: str, policy: str, node: str) -> Json:
    """Return a pod that runs an image's own program once on a node."""
    container = {"name": "main", "image": image, "imagePullPolicy": policy}
    spec = {"restartPolicy": "Never", "nodeName": node, "containers": [container]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}


def outputs(cluster: Cluster, *runs: tuple[str, str]) -> list[set[str]]:
    """Run images, each with a policy, on every node, all at once; return what each wrote there."""
    batch = next(_numbers)
    names = {(index, node): f"image-{batch}-{index}-{node}" for index in range(len(runs)) for node in NODES}
    cluster.create(*(pod(name, *runs[index], node) for (index, node), name in names.items()))
    results = [{cluster.finished(names[index, node]) for node in NODES} for index in range(len(runs))]
    cluster.delete("pod", "--wait=false", *names.values())
    return results


def test_a_loaded_image_runs_on_each_node(cluster: Cluster, layers: Sequence[bytes], tmp_path: Path) -> None:
    """From archives of `docker save` and of OCI, whatever the policy; loaded again, the next pod has the new one."""
    command = ["sh", "-c", "cat /app/greeting"]
    saved = make.docker_files(layers, ["loaded:latest"], Cmd=command)
    layout = make.layout_files(layers, "localhost/team/layout:1", Entrypoint=command)
    for file, content, name in (
        ("saved.tar", saved, "docker.io/library/loaded:latest"),
        ("layout.tar", layout, "localhost/team/layout:1"),
    ):
        done = cluster.lab.run("load", "--name", cluster.lab.name, str(make.write(tmp_path / file, content)))
        assert (done.returncode, done.stdout) == (0, f"loaded {name}\n"), done.stderr
    runs = (("localhost/team/layout:1", "Never"), ("loaded", "IfNotPresent"), ("loaded", "Always"))
    assert outputs(cluster, *runs) == [{"hello"}] * 3
    again = make.docker_files(layers, ["loaded:latest"], Cmd=["sh", "-c", "echo again"])
    done = cluster.lab.run("load", "--name", cluster.lab.name, str(make.write(tmp_path / "again.tar", again)))
    assert done.returncode == 0, done.stderr
    assert outputs(cluster, ("loaded", "Never"), ("loaded", "Always")) == [{"again\n"}] * 2


def test_nodes_pull_what_buildah_pushed(cluster: Cluster, layers: Sequence[bytes], tmp_path: Path) -> None:
    """By the name of the lab's registry; the same tag again is what `Always` runs, and what `IfNotPresent` does not."""
    if not shutil.which("buildah"):
        missing("buildah is not installed")
    name = f"{cluster.lab.variables['LAB_REGISTRY']}/team/app:1"
    container = container_of(tmp_path, layers)
    for text in ("first", "second"):
        push(tmp_path, container, ["sh", "-c", f"echo {text}"], name)
        assert outputs(cluster, (name, "IfNotPresent")) == [{"first\n"}]
        assert outputs(cluster, (name, "Always")) == [{f"{text}\n"}]


def test_a_directory_is_an_image(cluster: Cluster) -> None:
    """`PODIDENTITY_LAB_IMAGES` names it: its program `run` is started, whatever the tag."""
    runs = (("my-app", "Always"), ("my-app:1.2", "IfNotPresent"))
    assert outputs(cluster, *runs) == [{"hello from a directory\n"}] * 2


def test_an_image_that_is_nowhere_is_said(cluster: Cluster) -> None:
    """No registry of the Internet is asked: the pod's reason comes from the lab's, at once."""
    cluster.create(pod("nowhere", "registry.example/at-all:1", "Always", NODES[0]))

    def reasons() -> str:
        events = cluster.get("events", "--field-selector=involvedObject.name=nowhere,reason=Failed")
        return json.dumps(events["items"])

    until(lambda: "registry.example/at-all:1" in reasons(), "the reason")
    assert "not found" in reasons()
    cluster.delete("pod/nowhere", "--wait=false")
