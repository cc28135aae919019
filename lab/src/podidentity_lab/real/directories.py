"""Images of a real cluster that are directories of the user's: what `PODIDENTITY_LAB_IMAGES` names.

containerd runs no directories. Each becomes an image in the lab's store: that of the lab's tools, and over it the
directory as it is now, under its own path. Nodes pull it by its name, whatever the tag.
"""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from podidentity.errors import LabError
from podidentity_lab.oci import archive, names
from podidentity_lab.oci.archive import CONFIGURATION, LAYER, MANIFEST
from podidentity_lab.oci.sources import open_source
from podidentity_lab.oci.store import Store
from podidentity_lab.real import archive as writing

BASE = "podidentity/lab-tools:1"


def store(directories: Mapping[str, Path], archives: Sequence[Path], images: Store) -> dict[str, str]:
    """Store an image for each directory; return the digest of its manifest by host and repository of its name.

    `archives` are the lab's own, one of which has `BASE`. Raises `LabError`.
    """
    if not directories:
        return {}
    base = images.read_json(_base(archives, images))
    return {_repository(name): _image(path, base, images) for name, path in directories.items()}


def _base(archives: Sequence[Path], images: Store) -> str:
    for path in archives:
        with open_source(path) as source:
            for image in archive.read(source, images):
                if BASE in image.names:
                    return image.digest
    raise LabError(f"{' and '.join(map(str, archives))}: {BASE} is not in them; run `make image` again")


def _repository(name: str) -> str:
    parts = names.parse(name)
    return f"{parts.host}/{parts.repository}"


def _image(folder: Path, base: Any, images: Store) -> str:
    with tempfile.NamedTemporaryFile() as file:
        layer = Path(file.name)
        _write_layer(folder, layer)
        with layer.open("rb") as content:
            digest = images.copy(content)
        size = layer.stat().st_size
    configuration = images.read_json(base["config"]["digest"])
    program = folder / "run"
    diff_ids = [*configuration["rootfs"]["diff_ids"], digest]
    if program.is_file():
        configuration["config"]["Entrypoint"] = [str(program)]
    configuration["rootfs"] = {"type": "layers", "diff_ids": diff_ids}
    text = json.dumps(configuration, sort_keys=True).encode()
    descriptor = {"mediaType": CONFIGURATION, "digest": images.write_blob(text), "size": len(text)}
    layers = [*base["layers"], {"mediaType": LAYER, "digest": digest, "size": size}]
    manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": descriptor, "layers": layers}
    return images.write_blob(json.dumps(manifest, sort_keys=True).encode())


def _write_layer(folder: Path, target: Path) -> None:
    """Write what is in a directory as a layer. Raises `LabError` for what cannot be read."""
    paths = [path for path in folder.rglob("*") if path.is_symlink() or path.is_file() or path.is_dir()]
    try:
        writing.layer([(path, str(path).lstrip("/")) for path in paths], target)
    except OSError as error:
        raise LabError(
            f"{error.filename}: it cannot be put into an image ({error.strerror}); make it readable"
        ) from None
