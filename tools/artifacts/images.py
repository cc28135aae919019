"""The image archive of a release: what tools/image.py made, under the names of the registry."""

import io
import json
import platform
import tarfile
from collections.abc import Iterator
from pathlib import Path

from deployment.settings import Images

MANIFEST = "manifest.json"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def file_name() -> str:
    """Return the archive's name; it names the processor of this machine, for which the image is made."""
    return f"images-{_ARCHITECTURES[platform.machine()]}.tar"


def rename(source: Path, registry: str, target: Path) -> list[str]:
    """Copy an image archive, its images under their names in `registry`; return those names."""
    published = dict(zip(Images().by_name().values(), Images().published(registry).by_name().values(), strict=True))
    names: list[str] = []
    with tarfile.open(source) as old, tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as new:
        for member in old:
            content = old.extractfile(member)
            if content is None:
                continue
            if member.name == MANIFEST:
                manifest = json.load(content)
                for image in manifest:
                    image["RepoTags"] = [published[name] for name in image["RepoTags"]]
                    names += image["RepoTags"]
                text = json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()
                member.size, content = len(text), io.BytesIO(text)
            new.addfile(member, content)
    return names


def files(archive: Path) -> Iterator[tuple[str, bytes]]:
    """Yield path and contents of each file of the images' layers that says which package is in them."""
    with tarfile.open(archive) as outer:
        for member in outer:
            content = outer.extractfile(member)
            if content is None or not member.name.endswith(".tar"):
                continue
            with tarfile.open(fileobj=content) as layer:
                for file in layer:
                    if not is_record(file.name):
                        continue
                    record = layer.extractfile(file)
                    if record is not None:
                        yield file.name, record.read()


def is_record(path: str) -> bool:
    """Whether a path of an image is the record of a package: Debian's status, or a Python package's metadata."""
    return "/dpkg/status.d/" in path or path.endswith(".dist-info/METADATA")
