"""A lab in a file, which `lab save` writes and `lab up --state` reads: its Azure, and an embedded Kubernetes' objects.

The file holds every secret of both, private keys included, so it is for its owner alone. Nodes are not kept.
"""

import contextlib
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
    check_target(path)
    objects = control.ask(lab, "GET", "/kubernetes/state")
    text = json.dumps({**control.ask(lab, "GET", "/azure/state"), "kubernetes": objects})
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
        unfinished.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise LabError(f"{path}: {error.strerror}; name a file that can be written") from None


def check_target(path: Path) -> None:
    """Refuse with `LabError` what a plain file must not take the place of: as root that could be /dev/null."""
    try:
        is_other = path.exists() and not path.is_file()
    except OSError as error:
        raise LabError(f"{path}: {error.strerror}; name a file that can be written") from None
    if is_other:
        raise LabError(f"{path}: it is no plain file; name a file that can be written")


def open_state(path: Path | None) -> tuple[Azure, Json | None]:
    """Return a fresh Azure, or the one in a file with its Kubernetes' objects, if it has any. Raises `LabError`."""
    if path is None:
        return Azure(AzureSettings()), None
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):  # a pipe is waited for, a device may have no end
            raise LabError(f"--state {path}: it is no plain file; name one that `podidentity lab save` wrote")
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        cause = error.strerror if isinstance(error, OSError) else "not a text"
        raise LabError(f"--state {path}: {cause}; name a file that `podidentity lab save` wrote") from None
    try:
        azure = Azure.restore(text)
    except LabError as error:
        raise LabError(f"--state {path}: {error}") from None
    return azure, json.loads(text).get("kubernetes")
