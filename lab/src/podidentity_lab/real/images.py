"""Which image archives the nodes of a real cluster have, and the sentence for those that are not there yet."""

from pathlib import Path

from podidentity.errors import LabError
from podidentity_lab.real.program import PREBUILT

_BUILD = Path(__file__).resolve().parents[4] / "build"
NAMES = ("image.tar", "lab-images.tar")
"""podidentity's own, and those of the sample application and the lab's tools."""


def archives() -> tuple[Path, ...]:
    """Return the paths of the archives. Raises `LabError` when one is missing."""
    paths, prebuilt = (tuple(folder / name for name in NAMES) for folder in (_BUILD, PREBUILT))
    missing = [str(path) for path in paths if not path.is_file()]
    if missing and all(path.is_file() for path in prebuilt):
        return prebuilt
    if missing:
        raise LabError(f"{' and '.join(missing)}: a real cluster needs these images; `make image` makes them")
    return paths
