"""Reads images from an archive into a store: `docker save`, `podman save`, `buildah push oci-archive:`, OCI layouts.

Whatever the archive's form, the store has blobs and one OCI manifest for each image afterwards.
"""

import json
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from podidentity_lab.oci import names
from podidentity_lab.oci.errors import ImageError
from podidentity_lab.oci.names import DIGEST
from podidentity_lab.oci.sources import Source, read_small
from podidentity_lab.oci.store import Store

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIGURATION = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
INDEXES = frozenset({INDEX, "application/vnd.docker.distribution.manifest.list.v2+json"})
MANIFESTS = frozenset({MANIFEST, "application/vnd.docker.distribution.manifest.v2+json"})
FULL_NAME = "io.containerd.image.name"
SHORT_NAME = "org.opencontainers.image.ref.name"
NESTING_LIMIT = 3
IMAGE_LIMIT = 1_000

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ArchivedImage:
    """An image of an archive: the names that the archive gives it, as written there, and its manifest's digest."""

    names: tuple[str, ...]
    digest: str


def architecture() -> str:
    """Return what images call this machine's processor."""
    return _ARCHITECTURES.get(platform.machine(), platform.machine())


def read(source: Source, store: Store) -> tuple[ArchivedImage, ...]:
    """Copy the images of an archive into `store` and return them. Raises `ImageError`."""
    if source.has("manifest.json"):
        images = tuple(_docker_images(source, store))
    elif source.has("index.json"):
        images = tuple(_layout_images(source, store))
    else:
        raise ImageError("neither manifest.json nor index.json is in it; give an archive of `docker save`, or OCI's")
    if not images:
        raise ImageError(f"it has no image for linux/{architecture()}; build one for this machine")
    return images


def media_suffix(head: bytes) -> str:
    """Return how a layer is compressed, by its first bytes: "", "+gzip" or "+zstd"."""
    return "+gzip" if head.startswith(_GZIP) else "+zstd" if head.startswith(_ZSTD) else ""


def platform_manifest(index: Json) -> Json | None:
    """Return the descriptor in an index of several platforms that is for this machine."""
    for descriptor in _objects(index.get("manifests")):
        wanted_platform = _object(descriptor.get("platform"))
        pair = (wanted_platform.get("os", "linux"), wanted_platform.get("architecture", architecture()))
        if pair == ("linux", architecture()):
            return descriptor
    return None


def layer_descriptors(manifest: Json) -> list[Any]:
    """Return what a manifest says of its layers, from the lowest. Raises `ImageError` when it has no list of them."""
    descriptors = manifest.get("layers")
    if not isinstance(descriptors, list):
        raise ImageError("layers: there is no list of them in the image's manifest; save or push the image again")
    return descriptors


def _docker_images(source: Source, store: Store) -> Iterator[ArchivedImage]:
    for item in _objects(_json(source, "manifest.json"))[:IMAGE_LIMIT]:
        configuration_name, layers, tags = item.get("Config"), item.get("Layers") or [], item.get("RepoTags") or []
        if not (isinstance(configuration_name, str) and _is_texts(layers) and _is_texts(tags)):
            raise ImageError("manifest.json: it names no configuration, layers or tags; save the image again")
        content = read_small(source, configuration_name)
        stem = configuration_name.rpartition("/")[2].removesuffix(".json")
        digest = f"sha256:{stem}"
        configuration = store.write_blob(content, digest if DIGEST.fullmatch(digest) else "")
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": CONFIGURATION, "digest": configuration, "size": len(content)},
            "layers": [_docker_layer(source, store, name) for name in layers],
        }
        text = json.dumps(manifest, sort_keys=True).encode()
        yield ArchivedImage(tuple(tags), store.write_blob(text))


def _docker_layer(source: Source, store: Store, name: str) -> Json:
    stated = f"sha256:{name.rpartition('/')[2].removesuffix('.tar')}"
    with source.open(name) as file:
        # podman names a layer by its content, an older Docker its directory by something else.
        digest = store.copy(file, stated if DIGEST.fullmatch(stated) else "")
    path = store.blob(digest)
    with path.open("rb") as file:
        suffix = media_suffix(file.read(4))
    return {"mediaType": LAYER + suffix, "digest": digest, "size": path.stat().st_size}


def _layout_images(source: Source, store: Store) -> Iterator[ArchivedImage]:
    index = _json(source, "index.json")
    for descriptor in _objects(index.get("manifests") if isinstance(index, dict) else None)[:IMAGE_LIMIT]:
        digest = _copy_manifest(source, store, descriptor, NESTING_LIMIT)
        if digest is not None:
            annotations = _object(descriptor.get("annotations"))
            name = annotations.get(FULL_NAME) or annotations.get(SHORT_NAME) or ""
            yield ArchivedImage((str(name),) if _is_full(str(name)) else (), digest)


def _is_full(name: str) -> bool:
    """Whether an annotation is a name, not a tag alone, which `org.opencontainers.image.ref.name` may be."""
    return "/" in name or ":" in name


def _copy_manifest(source: Source, store: Store, descriptor: Json, depth: int) -> str | None:
    """Copy a manifest and its blobs; of an index, this machine's. Return the manifest's digest; None without one."""
    digest = _copy(source, store, descriptor)
    manifest = store.read_json(digest)
    if str(descriptor.get("mediaType")) in INDEXES or "manifests" in manifest:
        chosen_descriptor = platform_manifest(manifest)
        return _copy_manifest(source, store, chosen_descriptor, depth - 1) if chosen_descriptor and depth else None
    for item in (manifest.get("config"), *layer_descriptors(manifest)):
        _copy(source, store, item)
    return digest


def _copy(source: Source, store: Store, descriptor: object) -> str:
    """Copy a blob whose digest and size the descriptor says. Raises `ImageError`."""
    digest = str(descriptor.get("digest")) if isinstance(descriptor, dict) else ""
    if not isinstance(descriptor, dict) or not DIGEST.fullmatch(digest):
        raise ImageError(f"digest {digest!r}: it is no SHA-256 digest; save the image again")
    path = store.blob(digest)
    if not path.exists():
        with source.open(f"blobs/sha256/{digest.removeprefix('sha256:')}") as file:
            store.copy(file, digest)
    if path.stat().st_size != descriptor.get("size", path.stat().st_size):
        raise ImageError(f"{digest}: its size is not what its descriptor says; save the image again")
    return digest


def image_names(images: Sequence[ArchivedImage], override: str) -> dict[str, str]:
    """Return the digest of each image by its full name; `override` names the only image of an archive.

    Raises `ImageError` for an image without a name, or with one that is no name.
    """
    if override:
        if len(images) != 1:
            raise ImageError(f"--image {override}: the archive has {len(images)} images; leave the option out")
        return {str(names.parse(override)): images[0].digest}
    if not any(image.names for image in images):
        raise ImageError("the archive gives its image no name; name it with --image NAME:TAG")
    return {str(names.parse(name)): image.digest for image in images for name in image.names}


def _json(source: Source, name: str) -> Any:
    try:
        return json.loads(read_small(source, name))
    except (ValueError, RecursionError):
        raise ImageError(f"{name}: it is no JSON; save the image again") from None


def _object(value: Any) -> Json:
    return value if isinstance(value, dict) else {}


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _objects(value: Any) -> list[Json]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
