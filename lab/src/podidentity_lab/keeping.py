"""A lab in a file, which `lab save` writes and `lab up --state` reads: its Azure, and an embedded Kubernetes' objects.

The file holds every secret of both, private keys included, so it is for its owner alone. Nodes are not kept.
"""

import json
import os
from pathlib import Path
from typing import Any

from podidentity.errors import LabError
from podidentity_lab import control
from podidentity_lab.azure import Azure, AzureSettings
from podidentity_lab.directory import Directory

Json = dict[str, Any]


def save(lab: Directory, path: Path) -> None:
    """Write a running lab to `path`, whole or not at all. Raises `LabError`."""
    objects = control.ask(lab, "GET", "/kubernetes/state")
    text = json.dumps({**control.ask(lab, "GET", "/azure/state"), "kubernetes": objects})
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
        unfinished.replace(path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise LabError(f"{path}: {error.strerror}; name a file that can be written") from None


def open_state(path: Path | None) -> tuple[Azure, Json | None]:
    """Return a fresh Azure, or the one in a file with its Kubernetes' objects, if it has any. Raises `LabError`."""
    if path is None:
        return Azure(AzureSettings()), None
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        cause = error.strerror if isinstance(error, OSError) else "not a text"
        raise LabError(f"--state {path}: {cause}; name a file that `podidentity lab save` wrote") from None
    try:
        azure = Azure.restore(text)
    except LabError as error:
        raise LabError(f"--state {path}: {error}") from None
    return azure, json.loads(text).get("kubernetes")
