"""Volumes: what stands behind each volume of a pod, and where a container sees it.

Contents are written to the lab's own memory; hostPath leads below the node's directory in the lab's state and never to
the machine's files. Called by `pod`. A volume that cannot be had is a `VolumeError`: the pod waits with an event.
"""

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from podidentity.errors import LabError
from podidentity.lab.kubelet import environment
from podidentity.lab.kubelet.node import Json, Node, find
from podidentity.lab.sandbox.root import Bind


class VolumeError(LabError):
    """A volume cannot be had, now or ever; the sentence says why."""


def prepare(node: Node, pod: Json, folder: Path) -> dict[str, Path]:
    """Make every volume of a pod below `folder`; where each is, by name. Raises `VolumeError`."""
    return {volume["name"]: _make(node, pod, volume, folder) for volume in pod["spec"].get("volumes") or ()}


def binds(container: Json, made: dict[str, Path], writable: Iterable[str]) -> tuple[Bind, ...]:
    """Where a container sees its volumes; only those in `writable` can be written to. Raises `VolumeError`."""
    found = []
    for mount in container.get("volumeMounts") or ():
        name = mount["name"]
        if name not in made:
            raise VolumeError(f"container {container['name']} mounts the volume {name!r}, which the pod does not have")
        source = made[name]
        if mount.get("subPath"):
            source = below(source, mount["subPath"])
        read_only = bool(mount.get("readOnly")) or name not in writable
        found.append((str(source), mount["mountPath"], read_only))
    return tuple(found)


def writable(pod: Json) -> frozenset[str]:
    """Names of the volumes that a container may write to: a real node shows contents of the API read-only, too."""
    volumes = pod["spec"].get("volumes") or ()
    return frozenset(
        volume["name"] for volume in volumes if volume.keys() & {"emptyDir", "hostPath"} or len(volume) == 1
    )


def below(root: Path, path: str) -> Path:
    """A path inside `root`, symbolic links followed. Raises `VolumeError` when it leads outside."""
    base = root.resolve()
    found = (base / path.lstrip("/")).resolve()
    if found != base and base not in found.parents:
        raise VolumeError(f"the path {path!r} leads out of {base}")
    return found


def _make(node: Node, pod: Json, volume: Json, folder: Path) -> Path:
    path = folder / str(volume["name"])
    if "hostPath" in volume:
        return _host_path(node, volume["hostPath"])
    if "emptyDir" in volume or len(volume) == 1:
        path.mkdir(mode=0o777, parents=True, exist_ok=True)
        path.chmod(0o777)
        return path
    contents: dict[str, Callable[[], dict[str, bytes]]] = {
        "secret": lambda: _keyed(node, pod, "secrets", _named(volume["secret"], "secretName")),
        "configMap": lambda: _keyed(node, pod, "configmaps", volume["configMap"]),
        "projected": lambda: _projected(node, pod, volume["projected"]),
        "downwardAPI": lambda: _downward(pod, volume["downwardAPI"]),
    }
    for kind, read in contents.items():
        if kind in volume:
            _write(path, read(), int(volume[kind].get("defaultMode") or 0o644))
            return path
    kinds = ", ".join(key for key in volume if key != "name")
    raise VolumeError(f"volume {volume['name']}: the lab has no volumes of kind {kinds}; see docs/lab.md")


def _write(path: Path, contents: dict[str, bytes], mode: int) -> None:
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(mode=0o755, parents=True)
    for name, content in contents.items():
        file = below(path, name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        file.chmod(mode)


def _named(source: Json, key: str) -> Json:
    return {**source, "name": source.get(key, "")}


def _keyed(node: Node, pod: Json, resource: str, source: Json) -> dict[str, bytes]:
    name = source["name"]
    obj = find(node.cluster.storage, resource, pod["metadata"]["namespace"], name)
    if obj is None:
        if source.get("optional"):
            return {}
        raise VolumeError(f'{resource[:-1]} "{name}" not found')
    values = environment.decoded(resource, obj)
    if not source.get("items"):
        return values
    missing = [item["key"] for item in source["items"] if item["key"] not in values]
    if missing and not source.get("optional"):
        raise VolumeError(f'{resource[:-1]} "{name}" has no key {missing[0]!r}')
    return {item["path"]: values[item["key"]] for item in source["items"] if item["key"] in values}


def _projected(node: Node, pod: Json, projected: Json) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for source in projected.get("sources") or ():
        for kind, read in _projections(node, pod).items():
            if kind in source:
                found |= read(source[kind])
    return found


def _projections(node: Node, pod: Json) -> dict[str, Callable[[Json], dict[str, bytes]]]:
    return {
        "secret": lambda source: _keyed(node, pod, "secrets", source),
        "configMap": lambda source: _keyed(node, pod, "configmaps", source),
        "downwardAPI": lambda source: _downward(pod, source),
        "serviceAccountToken": lambda source: _service_account(node, pod, source),
    }


def _downward(pod: Json, source: Json) -> dict[str, bytes]:
    items = source.get("items") or ()
    return {item["path"]: environment.field(pod, item["fieldRef"]["fieldPath"]).encode() for item in items}


def _service_account(node: Node, pod: Json, source: Json) -> dict[str, bytes]:
    """A token, and beside it the two files that a real cluster projects from elsewhere."""
    metadata = pod["metadata"]
    account = pod["spec"].get("serviceAccountName") or "default"
    pod_itself = {"name": metadata["name"], "uid": metadata["uid"]}
    token = node.cluster.token(metadata["namespace"], account, pod_itself, source.get("audience") or "")
    return {
        source.get("path") or "token": token.encode(),
        "ca.crt": node.cluster.cluster_ca.encode(),
        "namespace": metadata["namespace"].encode(),
    }


def _host_path(node: Node, source: Json) -> Path:
    path, kind = below(node.files, source["path"]), source.get("type") or ""
    if kind in ("Directory", "File"):
        fits = path.is_dir() if kind == "Directory" else path.is_file()
        if not fits:
            raise VolumeError(f"hostPath {source['path']} is no {kind.lower()} on node {node.name} ({path})")
    elif kind == "FileOrCreate":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    elif not path.exists():
        path.mkdir(parents=True)
    return path
