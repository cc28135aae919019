"""Writes images of a store as one archive in the form of an OCI image layout, which `ctr images import` takes."""

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path

from podidentity_lab.oci.archive import FULL_NAME, INDEX, MANIFEST
from podidentity_lab.oci.store import Store


def export(store: Store, digests: Mapping[str, str], target: Path) -> None:
    """Write the images whose manifests have these digests, each under its full name. Raises `ImageError`."""
    descriptors, blobs = [], set()
    for name, digest in sorted(digests.items()):
        manifest = store.read_json(digest)
        blobs |= {digest, *(str(item["digest"]) for item in (manifest["config"], *manifest["layers"]))}
        descriptors.append(
            {
                "mediaType": manifest.get("mediaType") or MANIFEST,
                "digest": digest,
                "size": store.blob(digest).stat().st_size,
                "annotations": {FULL_NAME: name},
            }
        )
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": descriptors}
    with tarfile.open(target, "w") as archive:
        for name, value in (("oci-layout", {"imageLayoutVersion": "1.0.0"}), ("index.json", index)):
            text = json.dumps(value).encode()
            info = tarfile.TarInfo(name)
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text))
        for digest in sorted(blobs):
            archive.add(store.blob(digest), f"blobs/sha256/{digest.removeprefix('sha256:')}", recursive=False)
