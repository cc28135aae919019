"""Archives whose bytes depend on their contents alone: sorted, of nobody, all of one time."""

import gzip
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path


def write(files: Mapping[str, bytes], target: Path, epoch: int) -> Path:
    """Write a gzipped tar of `files`, contents by path; `epoch` is the time of each, in seconds."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name in sorted(files):
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.mtime = len(files[name]), 0o644, epoch
            tar.addfile(info, io.BytesIO(files[name]))
    with target.open("wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=epoch) as packed:
        packed.write(plain.getvalue())
    return target


def read(path: Path) -> dict[str, bytes]:
    """Return the files of a gzipped tar, contents by path."""
    with tarfile.open(path) as tar:
        members = [member for member in tar if member.isfile()]
        return {member.name: content.read() for member in members if (content := tar.extractfile(member))}
