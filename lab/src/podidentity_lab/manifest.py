"""The manifest that installs podidentity, as the package carries it."""

from podidentity.errors import LabError
from podidentity_lab.data import MANIFEST


def text() -> str:
    """Return the manifest. Raises `LabError` when the installation is incomplete."""
    if MANIFEST.is_file():
        return MANIFEST.read_text()
    raise LabError(f"{MANIFEST} is missing; install podidentity-lab again")
