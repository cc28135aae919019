"""Renews the service account tokens in a pod's projected volumes at 80 % of their lifetime, as a kubelet does.

Source: kubernetes.io/docs/concepts/storage/projected-volumes, "serviceAccountToken projected volumes".
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from podidentity_lab.kubelet import volumes
from podidentity_lab.kubelet.node import Json, Node

RENEWAL_SHARE = 0.8


@dataclass(slots=True)
class _TokenFile:
    path: Path
    source: Json
    renewal: float


class ProjectedTokens:
    """The token files of one pod, whose volumes have been written. `paths` are its volumes by name."""

    def __init__(self, node: Node, pod: Json, paths: dict[str, Path]) -> None:
        self._node = node
        self._pod = pod
        self._files = [
            _TokenFile(paths[name] / (source.get("path") or "token"), source, self._renewal(source))
            for name, source in _sources(pod)
        ]

    def renew(self) -> None:
        """Replace each token whose time has come; a reader sees the whole old or the whole new file."""
        for file in self._files:
            if self._node.cluster.clock() >= file.renewal:
                with contextlib.suppress(volumes.VolumeError):  # its service account is gone: the old token stays
                    token = volumes.token(self._node, self._pod, file.source)
                    volumes.replace_file(file.path, token, file.path.stat().st_mode & 0o777)
                file.renewal = self._renewal(file.source)

    def __bool__(self) -> bool:
        return bool(self._files)

    def _renewal(self, source: Json) -> float:
        return self._node.cluster.clock() + RENEWAL_SHARE * volumes.lifetime_seconds(source)


def _sources(pod: Json) -> Iterator[tuple[str, Json]]:
    for volume in pod["spec"].get("volumes") or ():
        for source in (volume.get("projected") or {}).get("sources") or ():
            if "serviceAccountToken" in source:
                yield volume["name"], source["serviceAccountToken"]
