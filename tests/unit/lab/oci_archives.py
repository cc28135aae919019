"""Builders of image archives for tests: valid ones of each form, and invalid ones."""

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from podidentity_lab.oci.archive import architecture

Files = Mapping[str, str | tarfile.TarInfo]
"""By path, a file's text, or a member as it is."""


def tar(files: Files) -> bytes:
    """Return a tar archive; a path that ends with a slash is a directory."""
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w") as archive:
        for path, content in files.items():
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
                continue
            member = tarfile.TarInfo(path.rstrip("/"))
            member.mode = 0o755
            if path.endswith("/"):
                member.type = tarfile.DIRTYPE
            member.size = len(content.encode())
            archive.addfile(member, io.BytesIO(content.encode()))
    return output.getvalue()


def member(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    """Return a member that is no plain file: `kind` is one of tarfile's types."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def digest(content: bytes) -> str:
    """Return a content's digest."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def configuration(layers: Sequence[bytes], **values: Any) -> bytes:
    """Return an image's configuration; `values` are its `config`."""
    fields = {
        "architecture": architecture(),
        "os": "linux",
        "config": values,
        "rootfs": {"type": "layers", "diff_ids": [digest(layer) for layer in layers]},
    }
    return json.dumps(fields).encode()


def docker_files(layers: Sequence[bytes], names: Sequence[str], **values: Any) -> dict[str, bytes]:
    """Return the files of an archive of `docker save`."""
    text = configuration(layers, **values)
    files = {f"{digest(layer)[7:]}.tar": layer for layer in layers}
    name = f"{digest(text)[7:]}.json"
    manifest = [{"Config": name, "RepoTags": list(names), "Layers": list(files)}]
    return {**files, name: text, "manifest.json": json.dumps(manifest).encode()}


def layout_files(layers: Sequence[bytes], name: str, **values: Any) -> dict[str, bytes]:
    """Return the files of an OCI layout whose layers are compressed."""
    blobs = [gzip.compress(layer, mtime=0) for layer in layers]
    text = configuration(layers, **values)
    manifest = {"schemaVersion": 2, "config": descriptor(text), "layers": [descriptor(blob) for blob in blobs]}
    encoded = json.dumps(manifest).encode()
    annotations = {"org.opencontainers.image.ref.name": name}
    index = {"schemaVersion": 2, "manifests": [{**descriptor(encoded), "annotations": annotations}]}
    files = {f"blobs/sha256/{digest(blob)[7:]}": blob for blob in (*blobs, text, encoded)}
    return {**files, "oci-layout": b'{"imageLayoutVersion": "1.0.0"}', "index.json": json.dumps(index).encode()}


def descriptor(content: bytes) -> dict[str, Any]:
    """Return what an index or a manifest says of a blob."""
    return {"mediaType": "", "digest": digest(content), "size": len(content)}


def write(path: Path, files: Mapping[str, bytes | tarfile.TarInfo]) -> Path:
    """Write a tar archive of files, and of members as they are."""
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
            else:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


def write_directory(path: Path, files: Mapping[str, bytes]) -> Path:
    """Write files into a directory."""
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path
