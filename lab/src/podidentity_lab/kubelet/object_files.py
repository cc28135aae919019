"""Keeps the files of ConfigMaps and Secrets in a pod's volumes in step with their objects, as a kubelet does.

A kubelet takes up to a minute and a half for it (kubernetes.io/docs/concepts/configuration/configmap, "Mounted
ConfigMaps are updated automatically"), the lab a second. A file that is mounted alone (`subPath`) keeps its content, as
on a real node. When an object is deleted, its files stay.
"""

from pathlib import Path

from podidentity_lab.kubelet import volumes
from podidentity_lab.kubelet.node import Json, Node


class ObjectFiles:
    """The files of one pod, whose volumes have been written. `paths` are its volumes by name."""

    def __init__(self, node: Node, pod: Json, paths: dict[str, Path]) -> None:
        self._node = node
        self._pod = pod
        self._paths = paths
        self._volumes = [volume for volume in pod["spec"].get("volumes") or () if volumes.has_objects(volume)]
        self._contents = {volume["name"]: self._read(volume) for volume in self._volumes}

    def refresh(self) -> None:
        """Write what changed; a reader sees the old or the new file, whole."""
        for volume in self._volumes:
            name = volume["name"]
            previous, contents = self._contents[name], self._read(volume)
            if contents is None or contents == previous:
                continue
            mode = volumes.file_mode(volume)
            for path, content in contents.items():
                if (previous or {}).get(path) != content:
                    volumes.replace_file(volumes.path_below(self._paths[name], path), content, mode)
            for path in (previous or {}).keys() - contents.keys():
                volumes.path_below(self._paths[name], path).unlink(missing_ok=True)
            self._contents[name] = contents

    def __bool__(self) -> bool:
        return bool(self._volumes)

    def _read(self, volume: Json) -> dict[str, bytes] | None:
        try:
            return volumes.read_objects(self._node, self._pod, volume)
        except volumes.VolumeError:
            return None
