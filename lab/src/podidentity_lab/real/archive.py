"""Image archives that `ctr images import` and `docker load` take: layers and what to run, without a container engine.

Reproducible: the same layers and the same configuration make the same bytes.
"""

import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Image:
    """One image: its names, its layers from the lowest, and its configuration as Docker spells it."""

    names: Sequence[str]
    layers: Sequence[Path]
    entry_point: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    user: str = ""
    """As whom it runs, `UID:GID`; empty: as root."""

    def configuration(self, digests: Mapping[Path, str]) -> bytes:
        """Return the image's configuration, encoded. `digests` are the layers' SHA-256."""
        variables = {"PATH": _PATH, **self.environment}
        return _encoded(
            {
                "architecture": _ARCHITECTURES[platform.machine()],
                "os": "linux",
                "config": {
                    "Entrypoint": list(self.entry_point),
                    "Env": [f"{name}={value}" for name, value in variables.items()],
                    "Labels": dict(self.labels),
                    "WorkingDir": "/",
                    **({"User": self.user} if self.user else {}),
                },
                "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digests[layer]}" for layer in self.layers]},
            }
        )


def write(images: Iterable[Image], target: Path) -> None:
    """Write the archive of all `images`, whole or not at all; a layer that several have is in it once."""
    every_image = list(images)
    digests = {layer: _digest(layer) for image in every_image for layer in image.layers}
    partial = target.with_name(f".{target.name}.partial")
    with tarfile.open(partial, "w", format=tarfile.PAX_FORMAT) as tar:
        for layer, digest in digests.items():
            with layer.open("rb") as content:
                info = _member(f"{digest}.tar", layer.stat().st_size)
                tar.addfile(info, content)
        manifest = []
        for image in every_image:
            configuration = image.configuration(digests)
            name = f"{hashlib.sha256(configuration).hexdigest()}.json"
            tar.addfile(_member(name, len(configuration)), io.BytesIO(configuration))
            layers = [f"{digests[layer]}.tar" for layer in image.layers]
            manifest.append({"Config": name, "RepoTags": list(image.names), "Layers": layers})
        text = _encoded(manifest)
        tar.addfile(_member("manifest.json", len(text)), io.BytesIO(text))
    partial.replace(target)


def layer(files: Iterable[tuple[Path, str]], target: Path) -> None:
    """Write a layer: each file, link or empty directory of this machine under its path in the image, as root's.

    Times, owners and order say nothing about the machine that made it.
    """
    partial = target.with_name(f".{target.name}.partial")
    with tarfile.open(partial, "w", format=tarfile.GNU_FORMAT) as tar:
        directories: set[str] = set()
        for source, path in sorted(files, key=lambda pair: pair[1]):
            for parent in reversed(Path(path).parents[:-1]):
                _directory(tar, str(parent), directories)
            if source.is_dir() and not source.is_symlink():
                _directory(tar, path, directories)
                continue
            info = tar.gettarinfo(source, path)
            info.uid = info.gid = info.mtime = 0
            info.uname = info.gname = ""
            info.mode = 0o755 if info.mode & 0o100 else 0o644
            if info.islnk():  # two names of one file: what it is to the machine, not to the image
                info.type, info.linkname, info.size = tarfile.REGTYPE, "", source.stat().st_size
            if info.isreg():
                with source.open("rb") as content:
                    tar.addfile(info, content)
            else:
                tar.addfile(info)
    partial.replace(target)


def _directory(tar: tarfile.TarFile, path: str, directories: set[str]) -> None:
    if path in directories:
        return
    directories.add(path)
    info = _member(path, 0)
    info.type, info.mode = tarfile.DIRTYPE, 0o1777 if path in {"tmp", "var/tmp"} else 0o755
    tar.addfile(info)


def _member(name: str, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    return info


def _digest(path: Path) -> str:
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _encoded(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
