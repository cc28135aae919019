"""The images that a lab can run: finds them by name, and unpacks each once.

`loaded` names come from `lab load`; whatever is asked for at the lab's own registry was pushed there.
"""

import asyncio
import os
import shutil
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from podidentity_lab.oci import config, names
from podidentity_lab.oci.archive import layer_descriptors, platform_manifest
from podidentity_lab.oci.config import ImageConfig
from podidentity_lab.oci.errors import ImageError
from podidentity_lab.oci.layers import unpack
from podidentity_lab.oci.store import Store

REGISTRY_NAMES = ("localhost", "127.0.0.1")


@dataclass(frozen=True, slots=True)
class UnpackedImage:
    """An image that is ready to run: its program and its root, which nobody may write to."""

    digest: str
    config: ImageConfig
    root: Path


class Library:
    """The images in `store`. `registry_port` is the lab's own registry's."""

    def __init__(self, store: Store, registry_port: int = 0) -> None:
        self._store = store
        self._registry_hosts = {f"{name}:{registry_port}" for name in REGISTRY_NAMES} if registry_port else set()
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    def find_loaded(self, name: names.Name) -> str | None:
        """Return the digest of the manifest that was loaded under a name, or that a name's digest is."""
        if name.digest:
            return name.digest if self._store.blob(name.digest).exists() else None
        return self._store.find("loaded", str(name))

    def is_pushed_here(self, name: names.Name) -> bool:
        """Whether a name is one of the lab's own registry."""
        return name.host in self._registry_hosts

    def find_pushed(self, name: names.Name) -> str | None:
        """Return the digest of the manifest that was pushed under a name."""
        if not self.is_pushed_here(name):
            return None
        return name.digest or self._store.find("pushed", f"{name.repository}:{name.tag}")

    async def load(self, digests: Mapping[str, str]) -> None:
        """Take images that are in the store, by full name: unpack them, then let the names lead to them.

        Raises `ImageError`; then no name has changed.
        """
        for digest in sorted(set(digests.values())):
            await self.image(digest)
        for name, digest in digests.items():
            self._store.name("loaded", name, digest)

    async def image(self, digest: str) -> UnpackedImage:
        """Return an image by its manifest's digest, unpacked if it was not yet. Raises `ImageError`."""
        async with self._locks[digest]:
            return await asyncio.to_thread(self._unpacked, digest)

    def _unpacked(self, digest: str) -> UnpackedImage:
        manifest = self._store.read_json(digest)
        if "manifests" in manifest:
            descriptor = platform_manifest(manifest)
            if descriptor is None:
                raise ImageError(f"{digest}: no image in it is for this machine; build one that is")
            manifest = self._store.read_json(_digest_in(descriptor))
        configuration = self._store.read_json(_digest_in(manifest.get("config")))
        program = config.parse(configuration)
        layers = [self._store.blob(_digest_in(layer)) for layer in layer_descriptors(manifest)]
        diff_ids = config.diff_ids(configuration)
        if len(layers) != len(diff_ids) or not all(path.exists() for path in layers):
            raise ImageError(f"{digest}: it does not have the layers that it names; save or push the image again")
        root = self._store.root(digest)
        if not root.exists():
            _unpack_whole(list(zip(layers, diff_ids, strict=True)), root)
        return UnpackedImage(digest, program, root)


def _digest_in(descriptor: object) -> str:
    digest = str(descriptor.get("digest")) if isinstance(descriptor, dict) else ""
    if not names.DIGEST.fullmatch(digest):
        raise ImageError(f"digest {digest!r}: it is no SHA-256 digest; save or push the image again")
    return digest


def _unpack_whole(layers: list[tuple[Path, str]], root: Path) -> None:
    """Unpack into `root`, or leave nothing there. Raises `ImageError`."""
    partial = root.with_name(f".{root.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        unpack(layers, partial, as_root=_owns_all_users())
        partial.replace(root)
    except OSError as error:
        message = f"{error.filename or root}: {error.strerror}; make room below the lab's directory"
        raise ImageError(f"the image cannot be unpacked: {message}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _owns_all_users() -> bool:
    """Whether this process can make files of any user: root outside of a user namespace of one user."""
    first, _, count = Path("/proc/self/uid_map").read_text().split()[:3]
    return os.geteuid() == 0 and first == "0" and int(count) > 1
