"""Blobs on their way into the store: each upload of the registry, from its first request to its last."""

import uuid

from podidentity_lab.oci.store import BlobFile, Store

UPLOAD_LIMIT = 32
"""At once; the one that nobody has written to for the longest time gives way to the next."""


class Uploads:
    """The uploads to `store`, by their IDs."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._blobs: dict[str, BlobFile] = {}

    def begin(self) -> str:
        """Begin an upload and return its ID."""
        while len(self._blobs) >= UPLOAD_LIMIT:
            self.cancel(next(iter(self._blobs)))
        identifier = uuid.uuid4().hex
        self._blobs[identifier] = self._store.begin()
        return identifier

    def find(self, identifier: str) -> BlobFile | None:
        """Return an upload, which from now on is the one used last; None when there is none."""
        blob = self._blobs.pop(identifier, None)
        if blob is not None:
            self._blobs[identifier] = blob
        return blob

    def finish(self, identifier: str, digest: str) -> str:
        """Keep what was uploaded, and return its digest. Raises `ImageError` when it is not `digest`."""
        blob = self._blobs.pop(identifier)
        try:
            return self._store.keep(blob, digest)
        finally:
            blob.discard()

    def close(self) -> None:
        """Forget all uploads."""
        for identifier in list(self._blobs):
            self.cancel(identifier)

    def cancel(self, identifier: str) -> bool:
        """Forget an upload; return whether there was one."""
        blob = self._blobs.pop(identifier, None)
        if blob is not None:
            blob.discard()
        return blob is not None
