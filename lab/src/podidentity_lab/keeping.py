"""A lab's Azure in a file: written by `lab save`, read when a lab starts with it. Kubernetes and nodes are not kept.

The file holds every secret of that Azure, private keys included, so it is for its owner alone.
"""

import json
import os
from pathlib import Path

from podidentity.errors import LabError
from podidentity_lab import control
from podidentity_lab.azure import Azure, AzureSettings
from podidentity_lab.directory import Directory


def save(lab: Directory, path: Path) -> None:
    """Write the Azure of a running lab to `path`, whole or not at all. Raises `LabError`."""
    text = json.dumps(control.ask(lab, "GET", "/azure/state"))
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
        unfinished.replace(path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise LabError(f"{path}: {error.strerror}; name a file that can be written") from None


def open_azure(path: Path | None) -> Azure:
    """Return a fresh Azure, or the one in a file. Raises `LabError`."""
    if path is None:
        return Azure(AzureSettings())
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        cause = error.strerror if isinstance(error, OSError) else "not a text"
        raise LabError(f"--azure {path}: {cause}; name a file that `podidentity lab save` wrote") from None
    try:
        return Azure.restore(text)
    except LabError as error:
        raise LabError(f"--azure {path}: {error}") from None
