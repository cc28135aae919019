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
import zlib
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import IO, Any, cast

import zstandard

from podidentity_lab.oci.archive import media_suffix
from podidentity_lab.oci.errors import ImageError
from podidentity_lab.oci.store import CHUNK_BYTES, GIB, MIB
from podidentity_lab.sandbox.paths import inside

ROOT_LIMIT_BYTES = 16 * GIB
"""Of all layers of an image, unpacked: a bound for what a few compressed bytes can become."""
FILE_LIMIT = 1_000_000
"""Of all layers, directories that no layer names included."""
DEPTH_LIMIT = 128
"""Directories in one another: Python removes a tree by recursion, and the lab must be able to remove what it made."""
HEADER_LIMIT_BYTES = 16 * MIB
"""Between the contents of two files: tarfile holds long names and extended headers in memory."""

_WHITEOUT, _OPAQUE = ".wh.", ".wh..wh..opq"
_FAILURES = (
    tarfile.TarError,
    EOFError,
    gzip.BadGzipFile,
    zlib.error,
    zstandard.ZstdError,
    ValueError,
    OverflowError,  # an owner or a time that no file can have
    RecursionError,  # a thousand extended headers for one file
)


@dataclass(slots=True)
class _Measure:
    """What one image has unpacked so far, in bytes and files."""

    size: int = 0
    files: int = 0

    def add_bytes(self, count: int) -> None:
        """Count bytes. Raises `ImageError` above the limit."""
        self.size += count
        if self.size > ROOT_LIMIT_BYTES:
            raise ImageError(f"the image is larger than {ROOT_LIMIT_BYTES // GIB} GiB unpacked; make it smaller")

    def add_file(self) -> None:
        """Count a file or directory. Raises `ImageError` above the limit."""
        self.files += 1
        if self.files > FILE_LIMIT:
            raise ImageError(f"the image has more than {FILE_LIMIT} files; make it smaller")


@dataclass(slots=True)
class _Stream:
    """A layer's tar, uncompressed, read once from the start: `sha256` is of all that was read.

    `header_size` are the bytes read since the last of a file's content.
    """

    file: IO[bytes]
    measure: _Measure
    sha256: "hashlib._Hash" = field(default_factory=hashlib.sha256)
    header_size: int = 0

    def read(self, size: int = CHUNK_BYTES) -> bytes:
        """Return up to `size` bytes, fewer only at the end. Raises `ImageError` above a limit."""
        chunk = self.file.read(size)
        self.sha256.update(chunk)
        self.measure.add_bytes(len(chunk))
        self.header_size += len(chunk)
        if self.header_size > HEADER_LIMIT_BYTES:
            raise ImageError(f"a layer has more than {HEADER_LIMIT_BYTES // MIB} MiB of headers; build the image again")
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
                    stream.header_size = 0
            except _FAILURES as error:
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
            stream.measure.add_file()
            folder, base = _place(member, root)
            if base.startswith(_WHITEOUT):
                _white_out(folder, base, own_paths)
            elif not base:
                root.chmod(member.mode & 0o7777)
            else:
                _make_folder(folder, stream.measure)
                path = folder / base
                if _make(archive, member, path, root, stream):
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
    folder = Path(inside(str(root), "/".join(parts[:-1])))
    if len(folder.parts) - len(root.parts) >= DEPTH_LIMIT:
        message = f"{member.name[:80]}: it is more than {DEPTH_LIMIT} directories deep; build the image again"
        raise ImageError(message)
    return folder, parts[-1] if parts else ""


def _make_folder(folder: Path, measure: _Measure) -> None:
    """Make a directory and those that it is in, as far as they are missing."""
    missing_folders = list(takewhile(lambda path: not path.exists(), (folder, *folder.parents)))
    for path in reversed(missing_folders):
        measure.add_file()
        path.mkdir()


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


def _make(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path, root: Path, stream: _Stream) -> bool:
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
        _copy(archive, member, path, stream)
    return True


def _copy(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path, stream: _Stream) -> None:
    """Write a file's content. The holes of a sparse file take nothing of the layer, and count as what they become."""
    if member.issparse():
        stream.measure.add_bytes(member.size)
    content = archive.extractfile(member)
    with path.open("xb") as file:
        while content is not None and (chunk := content.read(CHUNK_BYTES)):
            stream.header_size = 0
            file.write(chunk)


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
