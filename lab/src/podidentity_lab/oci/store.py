"""Where a lab keeps images: blobs by their SHA-256, and names that lead to manifests. Plain files, whole or not at all.

    blobs/HEX      content: layers, configurations, manifests
    loaded/NAME    the digest of a manifest; NAME is an image's full name, quoted
    pushed/NAME    the same for what was pushed to the lab's registry; NAME is REPOSITORY:TAG
    roots/HEX      an unpacked image, by the digest of its manifest

The command `lab load` and the lab itself write here, each as the lab's user.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal
from urllib.parse import quote, unquote

from podidentity_lab.oci.errors import ImageError

MIB, GIB = 1 << 20, 1 << 30
BLOB_LIMIT_BYTES = 8 * GIB
JSON_LIMIT_BYTES = 4 * MIB
"""Of a manifest or a configuration; registries refuse manifests above 4 MiB as well."""
CHUNK_BYTES = MIB

Origin = Literal["loaded", "pushed"]


@dataclass(slots=True)
class BlobFile:
    """A blob that is being written: `file` is below the store, `size` in bytes."""

    file: IO[bytes]
    path: Path
    size: int = 0
    sha256: "hashlib._Hash" = field(default_factory=hashlib.sha256)

    def write(self, chunk: bytes) -> None:
        """Add a chunk. Raises `ImageError` above the limit."""
        self.size += len(chunk)
        if self.size > BLOB_LIMIT_BYTES:
            message = f"image content: it is larger than {BLOB_LIMIT_BYTES // GIB} GiB; make the image smaller"
            raise ImageError(message)
        self.sha256.update(chunk)
        self.file.write(chunk)

    def discard(self) -> None:
        """Close the file, and remove it unless it was kept."""
        with suppress(OSError):  # a full disk
            self.file.close()
        self.path.unlink(missing_ok=True)

    @property
    def digest(self) -> str:
        """The digest of what has been written so far."""
        return f"sha256:{self.sha256.hexdigest()}"


class Store:
    """The images below `path`, which is made when something is written."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def begin(self) -> BlobFile:
        """Begin a blob, for `keep` to take; `discard` must follow either way."""
        descriptor, name = tempfile.mkstemp(prefix=".partial-", dir=self._folder("blobs"))
        return BlobFile(os.fdopen(descriptor, "wb"), Path(name))

    @contextmanager
    def writing(self) -> Iterator[BlobFile]:
        """Yield a blob to write; unless `keep` takes it, it goes with the body."""
        blob = self.begin()
        try:
            yield blob
        finally:
            blob.discard()

    def keep(self, blob: BlobFile, digest: str = "") -> str:
        """Keep a blob under its digest and return that. Raises `ImageError` when it is not `digest`."""
        if digest and digest != blob.digest:
            raise ImageError(f"{digest}: the content has another digest, {blob.digest}; save or push the image again")
        blob.file.flush()
        blob.path.replace(self.blob(blob.digest))
        return blob.digest

    def write_blob(self, content: bytes, digest: str = "") -> str:
        """Store a small blob and return its digest. Raises `ImageError` when it is not `digest`."""
        with self.writing() as blob:
            blob.write(content)
            return self.keep(blob, digest)

    def copy(self, source: IO[bytes], digest: str = "") -> str:
        """Store what can be read from `source` and return its digest. Raises `ImageError` when it is not `digest`."""
        with self.writing() as blob:
            while chunk := source.read(CHUNK_BYTES):
                blob.write(chunk)
            return self.keep(blob, digest)

    def blob(self, digest: str) -> Path:
        """Return the path of a blob, which may be missing."""
        return self._path / "blobs" / digest.removeprefix("sha256:")

    def root(self, digest: str) -> Path:
        """Return where an image is unpacked, or will be."""
        return self._folder("roots") / digest.removeprefix("sha256:")

    def read_json(self, digest: str) -> Any:
        """Return a manifest or configuration. Raises `ImageError` when it is missing, too large or no JSON object."""
        path = self.blob(digest)
        try:
            if path.stat().st_size > JSON_LIMIT_BYTES:
                raise ImageError(f"{digest}: it is larger than {JSON_LIMIT_BYTES // MIB} MiB; save the image again")
            value = json.loads(path.read_bytes())
        except FileNotFoundError:
            raise ImageError(f"{digest}: it is missing; save or push the image again") from None
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise ImageError(f"{digest}: it is no JSON object; save or push the image again")
        return value

    def name(self, origin: Origin, name: str, digest: str) -> None:
        """Let a name lead to a manifest."""
        target = self._folder(origin) / quote(name, safe="")
        partial = target.with_name(f".{os.getpid()}.partial")
        partial.write_text(digest)
        partial.replace(target)

    def forget(self, origin: Origin, name: str) -> bool:
        """Forget a name; return whether there was one."""
        path = self._path / origin / quote(name, safe="")
        with suppress(FileNotFoundError):
            path.unlink()
            return True
        return False

    def find(self, origin: Origin, name: str) -> str | None:
        """Return the digest of the manifest that a name leads to."""
        try:
            return (self._path / origin / quote(name, safe="")).read_text()
        except OSError:
            return None

    def names(self, origin: Origin) -> dict[str, str]:
        """Return every name and the digest of its manifest, sorted by name."""
        folder = self._path / origin
        paths = sorted(folder.iterdir()) if folder.is_dir() else []
        return {unquote(path.name): path.read_text() for path in paths if not path.name.startswith(".")}

    def _folder(self, name: str) -> Path:
        folder = self._path / name
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder
