"""Volumes: what stands behind each volume of a pod, and where a container sees it.

Contents are written to the lab's own memory; hostPath leads below the node's directory in the lab's state and never to
the machine's files. A volume that cannot be made is a `VolumeError`: the pod waits, and an event says why.
"""

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from podidentity.errors import LabError
from podidentity_lab.kubelet import environment
from podidentity_lab.kubelet.node import Json, Node, find
from podidentity_lab.sandbox.root import Bind

DEFAULT_LIFETIME_SECONDS = 3600
DEFAULT_MODE = 0o644
_OBJECTS = frozenset({"configMap", "secret"})
MIN_LIFETIME_SECONDS = 600  # as kube-apiserver validates expirationSeconds


class VolumeError(LabError):
    """A volume cannot be made, now or ever; the message says why."""


def prepare(node: Node, pod: Json, folder: Path) -> dict[str, Path]:
    """Make every volume of a pod below `folder`; return their paths by name. Raises `VolumeError`."""
    return {volume["name"]: _make(node, pod, volume, folder) for volume in pod["spec"].get("volumes") or ()}


def binds(container: Json, paths: dict[str, Path], writable: Iterable[str]) -> tuple[Bind, ...]:
    """Return where a container sees its volumes; only `writable` ones can be written to. Raises `VolumeError`."""
    mounts = []
    for mount in container.get("volumeMounts") or ():
        name = mount["name"]
        if name not in paths:
            message = f"container {container['name']} mounts the volume {name!r}, which the pod does not have"
            raise VolumeError(f"{message}; add it to spec.volumes")
        source = paths[name]
        if mount.get("subPath"):
            source = path_below(source, mount["subPath"])
        read_only = bool(mount.get("readOnly")) or name not in writable
        mounts.append((str(source), mount["mountPath"], read_only))
    return tuple(mounts)


def writable(pod: Json) -> frozenset[str]:
    """Return the names of the volumes that a container may write to; contents of the API are read-only."""
    volumes = pod["spec"].get("volumes") or ()
    return frozenset(
        volume["name"] for volume in volumes if volume.keys() & {"emptyDir", "hostPath"} or len(volume) == 1
    )


def lifetime_seconds(source: Json) -> int:
    """Return how long the token of a `serviceAccountToken` source lives. Raises `VolumeError` below 10 minutes."""
    seconds = int(source.get("expirationSeconds") or DEFAULT_LIFETIME_SECONDS)
    if seconds < MIN_LIFETIME_SECONDS:
        raise VolumeError(f"expirationSeconds: {seconds} is less than 10 minutes; use {MIN_LIFETIME_SECONDS} or more")
    return seconds


def path_below(root: Path, path: str) -> Path:
    """Return a path inside `root`, symbolic links followed. Raises `VolumeError` when it leads outside."""
    base = root.resolve()
    target = (base / path.lstrip("/")).resolve()
    if target != base and base not in target.parents:
        raise VolumeError(f"the path {path!r} leads out of {base}; give one below it")
    return target


def has_objects(volume: Json) -> bool:
    """Whether a volume has files of ConfigMaps or Secrets."""
    sources = (volume.get("projected") or {}).get("sources") or ()
    return any(source.keys() & _OBJECTS for source in (volume, *sources))


def read_objects(node: Node, pod: Json, volume: Json) -> dict[str, bytes]:
    """Return the files of a volume that come from ConfigMaps and Secrets, as these are now. Raises `VolumeError`."""
    if "secret" in volume:
        return _object_data(node, pod, "secrets", _object(volume["secret"], "secretName"))
    if "configMap" in volume:
        return _object_data(node, pod, "configmaps", volume["configMap"])
    sources = [source for source in volume["projected"].get("sources") or () if source.keys() & _OBJECTS]
    return _projected(node, pod, {"sources": sources})


def file_mode(volume: Json) -> int:
    """Return the mode of a volume's files."""
    (source,) = (value for key, value in volume.items() if key != "name")
    return int(source.get("defaultMode") or DEFAULT_MODE)


def replace_file(file: Path, content: bytes, mode: int) -> None:
    """Write a file; a reader sees the whole old or the whole new one."""
    fresh = file.with_name(f".{file.name}.new")
    fresh.parent.mkdir(parents=True, exist_ok=True)
    fresh.write_bytes(content)
    fresh.chmod(mode)
    fresh.replace(file)


def _make(node: Node, pod: Json, volume: Json, folder: Path) -> Path:
    path = folder / str(volume["name"])
    if "hostPath" in volume:
        return _host_path(node, volume["hostPath"])
    if "emptyDir" in volume or len(volume) == 1:
        path.mkdir(mode=0o777, parents=True, exist_ok=True)
        path.chmod(0o777)
        return path
    contents: dict[str, Callable[[], dict[str, bytes]]] = {
        "secret": lambda: read_objects(node, pod, volume),
        "configMap": lambda: read_objects(node, pod, volume),
        "projected": lambda: _projected(node, pod, volume["projected"]),
        "downwardAPI": lambda: _downward(pod, volume["downwardAPI"]),
    }
    for kind, read in contents.items():
        if kind in volume:
            _write(path, read(), file_mode(volume))
            return path
    kinds = ", ".join(key for key in volume if key != "name")
    raise VolumeError(f"volume {volume['name']}: the lab has no volumes of kind {kinds}; see docs/lab.md")


def _write(path: Path, contents: dict[str, bytes], mode: int) -> None:
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(mode=0o755, parents=True)
    for name, content in contents.items():
        file = path_below(path, name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        file.chmod(mode)


def _object(source: Json, key: str) -> Json:
    return {**source, "name": source.get(key, "")}


def _object_data(node: Node, pod: Json, resource: str, source: Json) -> dict[str, bytes]:
    name = source["name"]
    obj = find(node.cluster.storage, resource, pod["metadata"]["namespace"], name)
    if obj is None:
        if source.get("optional"):
            return {}
        raise VolumeError(f'{resource[:-1]} "{name}" not found; create it, or make the volume optional')
    values = environment.decoded(resource, obj)
    if not source.get("items"):
        return values
    missing = [item["key"] for item in source["items"] if item["key"] not in values]
    if missing and not source.get("optional"):
        raise VolumeError(f'{resource[:-1]} "{name}" has no key {missing[0]!r}; add it, or make the volume optional')
    return {item["path"]: values[item["key"]] for item in source["items"] if item["key"] in values}


def _projected(node: Node, pod: Json, projected: Json) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for source in projected.get("sources") or ():
        for kind, read in _projections(node, pod).items():
            if kind in source:
                files |= read(source[kind])
    return files


def _projections(node: Node, pod: Json) -> dict[str, Callable[[Json], dict[str, bytes]]]:
    return {
        "secret": lambda source: _object_data(node, pod, "secrets", source),
        "configMap": lambda source: _object_data(node, pod, "configmaps", source),
        "downwardAPI": lambda source: _downward(pod, source),
        "serviceAccountToken": lambda source: _service_account(node, pod, source),
    }


def _downward(pod: Json, source: Json) -> dict[str, bytes]:
    items = source.get("items") or ()
    return {item["path"]: environment.field(pod, item["fieldRef"]["fieldPath"]).encode() for item in items}


def _service_account(node: Node, pod: Json, source: Json) -> dict[str, bytes]:
    """Return a token, and the two files that a real cluster projects beside it from elsewhere."""
    return {
        source.get("path") or "token": token(node, pod, source),
        "ca.crt": node.cluster.cluster_ca.encode(),
        "namespace": pod["metadata"]["namespace"].encode(),
    }


def token(node: Node, pod: Json, source: Json) -> bytes:
    """Return a new token for a `serviceAccountToken` source. Raises `VolumeError`."""
    metadata = pod["metadata"]
    account = pod["spec"].get("serviceAccountName") or "default"
    if find(node.cluster.storage, "serviceaccounts", metadata["namespace"], account) is None:
        raise VolumeError(f'serviceaccount "{account}" not found; create it, or name another in serviceAccountName')
    bound = {"name": metadata["name"], "uid": metadata["uid"]}
    lifetime = lifetime_seconds(source)
    audience = source.get("audience") or ""
    return node.cluster.token(metadata["namespace"], account, bound, audience, lifetime).encode()


def _host_path(node: Node, source: Json) -> Path:
    path, kind = path_below(node.files, source["path"]), source.get("type") or ""
    if kind in ("Directory", "File"):
        fits = path.is_dir() if kind == "Directory" else path.is_file()
        if not fits:
            message = f"hostPath {source['path']} is no {kind.lower()} on node {node.name} ({path})"
            raise VolumeError(f"{message}; create it, or give the type {kind}OrCreate")
    elif kind == "FileOrCreate":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    elif not path.exists():
        path.mkdir(parents=True)
    return path
