"""Unpacks layers into a directory, the lowest first: what a container sees as its root.

Every path is taken as a process in that root would take it, so that no name and no link of a layer leads out of it.
Whiteouts are those of the image specification (layer.md): `.wh.NAME` removes NAME of the layers below, `.wh..wh..opq`
all that they have in its directory. Device files and extended attributes are left out: a container has a /dev of its
own, and gets no rights from files.
"""

import gzip
import hashlib
import os
import shutil
import tarfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

import zstandard

from podidentity_lab.oci.archive import media_suffix
from podidentity_lab.oci.errors import ImageError
from podidentity_lab.oci.store import CHUNK_BYTES, GIB
from podidentity_lab.sandbox.paths import inside

ROOT_LIMIT_BYTES = 16 * GIB
"""Of all layers of an image, unpacked: a bound for what a few compressed bytes can become."""
FILE_LIMIT = 1_000_000

_WHITEOUT, _OPAQUE = ".wh.", ".wh..wh..opq"


@dataclass(slots=True)
class _Measure:
    """What one image has unpacked so far."""

    size: int = 0
    files: int = 0


@dataclass(slots=True)
class _Stream:
    """A layer's tar, uncompressed, read once from the start: `sha256` is of all that was read."""

    file: IO[bytes]
    measure: _Measure
    sha256: "hashlib._Hash" = field(default_factory=hashlib.sha256)

    def read(self, size: int = CHUNK_BYTES) -> bytes:
        """Return up to `size` bytes, fewer only at the end. Raises `ImageError` above the limit."""
        chunk = self.file.read(size)
        self.sha256.update(chunk)
        self.measure.size += len(chunk)
        if self.measure.size > ROOT_LIMIT_BYTES:
            raise ImageError(f"the image is larger than {ROOT_LIMIT_BYTES // GIB} GiB unpacked; make it smaller")
        return chunk


def unpack(layers: list[tuple[Path, str]], root: Path, *, as_root: bool) -> None:
    """Unpack layers, each a blob and its `diff_id` (the digest of its tar), into the new directory `root`.

    Owners are set only `as_root`: another user has but its own. Raises `ImageError` and `OSError`.
    """
    root.mkdir(mode=0o755)
    measure = _Measure()
    for blob, diff_id in layers:
        with blob.open("rb") as file:
            head = file.read(4)
            file.seek(0)
            stream = _Stream(_decompressed(file, media_suffix(head)), measure)
            try:
                _apply(stream, root, as_root=as_root)
                while stream.read():
                    pass
            except (tarfile.TarError, EOFError, gzip.BadGzipFile, zstandard.ZstdError, ValueError) as error:
                raise ImageError(f"layer {diff_id}: it cannot be unpacked ({error}); save the image again") from None
        if f"sha256:{stream.sha256.hexdigest()}" != diff_id:
            raise ImageError(f"layer {diff_id}: its content has another digest; save the image again")


def _decompressed(file: IO[bytes], suffix: str) -> IO[bytes]:
    if suffix == "+gzip":
        return cast("IO[bytes]", gzip.GzipFile(fileobj=file))
    if suffix == "+zstd":
        return cast("IO[bytes]", zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True))
    return file


def _apply(stream: _Stream, root: Path, *, as_root: bool) -> None:
    """Apply one layer."""
    own_paths: set[Path] = {root}
    times: list[tuple[Path, float]] = []
    with tarfile.open(fileobj=cast("Any", stream), mode="r|", errorlevel=1) as archive:
        while (member := archive.next()) is not None:
            cast("Any", archive).members = []  # the stream is read once: what is done need not be remembered
            stream.measure.files += 1
            if stream.measure.files > FILE_LIMIT:
                raise ImageError(f"the image has more than {FILE_LIMIT} files; make it smaller")
            folder, base = _place(member, root)
            if base.startswith(_WHITEOUT):
                _white_out(folder, base, own_paths)
            elif not base:
                root.chmod(member.mode & 0o7777)
            else:
                folder.mkdir(parents=True, exist_ok=True)
                path = folder / base
                if _make(archive, member, path, root):
                    own_paths.update((path, *path.parents))
                    _dress(member, path, as_root=as_root)
                    times += [(path, member.mtime)] if member.isdir() else []
    for path, seconds in reversed(times):  # a file that is made in a directory changes its time
        with suppress(OSError):
            os.utime(path, (seconds, seconds), follow_symlinks=False)


def _place(member: tarfile.TarInfo, root: Path) -> tuple[Path, str]:
    """Return the directory of a member below `root` and its name there, "" for the root itself. Raises `ImageError`."""
    parts = [part for part in member.name.split("/") if part not in ("", ".")]
    if ".." in parts or "\0" in member.name:
        raise ImageError(f"{member.name}: the layer's path leads out of the image; build the image again")
    return Path(inside(str(root), "/".join(parts[:-1]))), parts[-1] if parts else ""


def _white_out(folder: Path, base: str, own_paths: set[Path]) -> None:
    """Remove what the layers below have; a file of this layer stays, whichever comes first. Raises `ImageError`."""
    if base == _OPAQUE:
        _empty(folder, own_paths)
        return
    name = base.removeprefix(_WHITEOUT)
    if name in ("", ".", ".."):
        raise ImageError(f"{base}: it is no whiteout; build the image again")
    if folder / name not in own_paths:
        _remove(folder / name)


def _empty(folder: Path, own_paths: set[Path]) -> None:
    for path in list(folder.iterdir()) if folder.is_dir() else ():
        if path not in own_paths:
            _remove(path)
        elif _is_directory(path):
            _empty(path, own_paths)


def _is_directory(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _remove(path: Path) -> None:
    if _is_directory(path):
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _make(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path, root: Path) -> bool:
    """Make what a member says; return whether there is something now. Raises `ImageError` and `OSError`."""
    if member.isdir():
        if not _is_directory(path):
            _remove(path)
            path.mkdir()
        return True
    if member.ischr() or member.isblk():
        return False
    target = Path(inside(str(root), member.linkname, last_link=False)) if member.islnk() else path
    if member.islnk() and (target == path or _is_directory(target) or not os.path.lexists(target)):
        raise ImageError(f"{member.name}: it is a link to {member.linkname}, which is missing; build the image again")
    _remove(path)
    if member.issym():
        path.symlink_to(member.linkname)
    elif member.islnk():
        os.link(target, path, follow_symlinks=False)
    elif member.isfifo():
        os.mkfifo(path)
    else:
        content = archive.extractfile(member)
        with path.open("xb") as file:
            if content is not None:
                shutil.copyfileobj(content, file, CHUNK_BYTES)
    return True


def _dress(member: tarfile.TarInfo, path: Path, *, as_root: bool) -> None:
    """Give a path its owner, mode and time. A hard link has those of its target."""
    if member.islnk():
        return
    if as_root:
        os.chown(path, member.uid, member.gid, follow_symlinks=False)
    if not member.issym():
        path.chmod(member.mode & 0o7777)
        if not member.isdir():
            os.utime(path, (member.mtime, member.mtime))
