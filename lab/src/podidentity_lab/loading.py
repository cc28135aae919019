"""`podidentity lab load`: an archive's images into a lab's store, and from there to every node."""

from pathlib import Path

from podidentity_lab import control
from podidentity_lab.directory import Directory
from podidentity_lab.oci import archive, sources
from podidentity_lab.oci.errors import ImageError
from podidentity_lab.oci.store import Store

LOAD_SECONDS = 600.0
"""For unpacking the largest image on a busy machine."""


def load(lab: Directory, path: Path, name: str = "") -> tuple[str, ...]:
    """Load an archive's images into a running lab and return their full names; `name` is for an image without one.

    Raises `ImageError` for an archive that is not whole or not safe, and `LabError` when the lab cannot take it.
    """
    with sources.open_source(path) as source:
        try:
            images = archive.read(source, Store(lab.images))
            digests = archive.image_names(images, name)
        except OSError as error:
            raise ImageError(f"it cannot be stored below {lab.images} ({error.strerror}); make room there") from None
    answer = control.ask(lab, "POST", "/images", LOAD_SECONDS, content=digests)
    if "error" in answer:
        raise ImageError(f"{path}: {answer['error']}")
    return tuple(sorted(digests))
