"""Which image archives the nodes of a real cluster have, and the sentence for those that are not there yet.

Called by `up`, before anything starts, and by `inside`.
"""

from pathlib import Path

import podidentity
from podidentity.errors import LabError

_BUILD = Path(podidentity.__file__).resolve().parents[2] / "build"
NAMES = ("image.tar", "lab-images.tar")
"""podidentity's own, and those of the sample application and the lab's tools."""


def archives() -> tuple[Path, ...]:
    """The archives. Raises `LabError` when one is missing."""
    found = tuple(_BUILD / name for name in NAMES)
    missing = [str(path) for path in found if not path.is_file()]
    if missing:
        raise LabError(f"A real cluster runs images, and {' and '.join(missing)} are missing: `make image` makes them.")
    return found
