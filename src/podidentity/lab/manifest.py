"""The manifest that installs podidentity: the package's own copy, or the checkout's. Called by the CLI."""

from pathlib import Path

import podidentity
from podidentity.errors import LabError

_NAME = "deployment-rbac.yaml"
_PLACES = (
    Path(__file__).with_name(_NAME),
    Path(podidentity.__file__).resolve().parents[2] / "deploy" / "infra" / _NAME,
)


def text() -> str:
    """Read it. Raises `LabError` when the installation is incomplete."""
    for place in _PLACES:
        if place.is_file():
            return place.read_text()
    raise LabError(f"{_PLACES[0]} is missing: install podidentity again, or use deploy/infra/{_NAME} of a checkout")
