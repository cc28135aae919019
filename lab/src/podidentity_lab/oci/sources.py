"""The files of an image archive by their names, wherever they are: in a tar file or in a directory.

Nothing is extracted: a name is looked up among the archive's members, and its content is read.
"""

import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Protocol

from podidentity_lab.oci.errors import ImageError
from podidentity_lab.oci.store import BLOB_LIMIT_BYTES, GIB, JSON_LIMIT_BYTES, MIB

MEMBER_LIMIT = 20_000
"""An archive has a few members for each layer."""
LINK_LIMIT = 8


class Source(Protocol):
    """The files of an archive."""

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        ...

    def open(self, name: str) -> IO[bytes]:
        """Return a file's content. Raises `ImageError` when it is missing."""
        ...


class TarSource:
    """The members of a tar archive. Raises `ImageError` for an archive that has what no image archive has."""

    def __init__(self, archive: tarfile.TarFile) -> None:
        self._archive = archive
        self._members: dict[str, tarfile.TarInfo] = {}
        for number, member in enumerate(archive, 1):
            if number > MEMBER_LIMIT:
                raise ImageError(f"the archive has more than {MEMBER_LIMIT} members; save fewer images into it")
            self._members[checked_name(member)] = member

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        return self._find(name) is not None

    def open(self, name: str) -> IO[bytes]:
        """Return a file's content. Raises `ImageError` when it is missing."""
        member = self._find(name)
        content = None if member is None else self._archive.extractfile(member)
        if content is None:
            raise ImageError(f"{name}: it is missing in the archive; save the image again")
        return content

    def _find(self, name: str) -> tarfile.TarInfo | None:
        """Return the file behind a name, links followed: older Dockers link a layer that several images share."""
        for _ in range(LINK_LIMIT):
            member = self._members.get(str(PurePosixPath(name)))
            if member is None or not (member.issym() or member.islnk()):
                return member if member is not None and member.isreg() else None
            name = _link_target(member)
        return None


class DirectorySource:
    """The files of an OCI image layout that is a directory. What leads out of it, a link included, is missing."""

    def __init__(self, path: Path) -> None:
        self._path = path.resolve()

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        return self._find(name) is not None

    def open(self, name: str) -> IO[bytes]:
        """Return a file's content. Raises `ImageError` when it is missing."""
        path = self._find(name)
        try:
            if path is not None:
                return path.open("rb")
        except OSError:
            pass
        raise ImageError(f"{name}: it is missing in {self._path}; save the image again")

    def _find(self, name: str) -> Path | None:
        try:
            path = (self._path / name).resolve()
            return path if path.is_relative_to(self._path) and path.is_file() else None
        except (OSError, ValueError, RuntimeError):  # too long, no path at all, links in a circle
            return None


@contextmanager
def open_source(path: Path) -> Iterator[Source]:
    """Yield the files of an archive or a directory. Raises `ImageError`."""
    if not (path.is_dir() or path.is_file()):  # a pipe is waited for, and a device may have no end
        raise ImageError(f"{path}: it is no file or directory; save the image into a file")
    try:
        if path.is_dir():
            yield DirectorySource(path)
            return
        with tarfile.open(path) as archive:
            yield TarSource(archive)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from None
    except (tarfile.TarError, EOFError, OSError) as error:
        reason = " ".join(str(error).partition("\n")[0].rstrip(":").split())  # tarfile adds a line for each compression
        raise ImageError(f"{path}: it cannot be read as a tar archive ({reason}); give one of `docker save`") from None


def read_small(source: Source, name: str) -> bytes:
    """Return a manifest or configuration. Raises `ImageError` when it is missing or too large."""
    with source.open(name) as file:
        content = file.read(JSON_LIMIT_BYTES + 1)
    if len(content) > JSON_LIMIT_BYTES:
        raise ImageError(f"{name}: it is larger than {JSON_LIMIT_BYTES // MIB} MiB; save the image again")
    return content


def checked_name(member: tarfile.TarInfo) -> str:
    """Return a member's name without `./`. Raises `ImageError` for what leads out of the archive, or is too large."""
    if not (member.isreg() or member.isdir() or member.issym() or member.islnk()):
        raise ImageError(f"{member.name}: it is no file, directory or link; save the image again")
    if member.size > BLOB_LIMIT_BYTES:
        raise ImageError(f"{member.name}: it is larger than {BLOB_LIMIT_BYTES // GIB} GiB; make the image smaller")
    _refuse_outside(member.name, member.name)
    if member.issym() or member.islnk():
        _refuse_outside(_link_target(member), member.name)
    return str(PurePosixPath(member.name))


def _refuse_outside(path: str, name: str) -> None:
    if path.startswith("/") or ".." in PurePosixPath(path).parts:
        raise ImageError(f"{name}: it leads out of the archive; save the image again")


def _link_target(member: tarfile.TarInfo) -> str:
    """Return the name that a link leads to: a symbolic link's from its own directory, a hard link's from the top."""
    if member.islnk() or member.linkname.startswith("/"):
        return member.linkname
    parts: list[str] = []
    for part in (PurePosixPath(member.name).parent / member.linkname).parts:
        if part == ".." and parts and parts[-1] != "..":
            parts.pop()
        else:
            parts.append(part)
    return "/".join(parts)
