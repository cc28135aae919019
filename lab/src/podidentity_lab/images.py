"""Which program an image name means: one of this repository, or a directory of the user's.

The lab has no registry and unpacks no image. `PODIDENTITY_LAB_IMAGES` names more: `NAME=DIRECTORY`, with commas
between. Such a container sees its directory, read-only and where it is, and starts the program `run` in it, if any.

For any other image, the pod's event is the sentence of `unknown`.
"""

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

from podidentity.errors import ConfigurationError
from podidentity_lab.data import KEYVAULT_APP
from podidentity_lab.sandbox.root import CERTIFICATES

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Image:
    """An image's entry point and environment; the container also sees `directory`."""

    entry_point: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    directory: Path | None = None


COMMANDS = {
    "podidentity/nmi": ("nmi",),
    "podidentity/mic": ("mic",),
    "podidentity/broker": ("broker",),
    "mcr.microsoft.com/oss/azure/aad-pod-identity/nmi": ("nmi",),
    "mcr.microsoft.com/oss/azure/aad-pod-identity/mic": ("mic",),
    "jcorioland/keyvault-aad-pod-identity": (),
    "podidentity/lab-tools": (),
}
"""By repository, the command of `podidentity` that the image runs; () for an image that runs something else."""


def find(name: str) -> Image | None:
    """Return the program behind an image name, whatever its tag or digest; None when the lab has none."""
    repository = name.split("@", maxsplit=1)[0].removeprefix("docker.io/")
    head, _, last = repository.rpartition("/")
    repository = f"{head}/{last.partition(':')[0]}" if head else last.partition(":")[0]
    directory = _user_images().get(repository)
    if directory is not None:
        entry = directory / "run"
        return Image((str(entry),) if entry.is_file() else (), _environment(), directory)
    if repository not in COMMANDS:
        return None
    if COMMANDS[repository]:
        return Image((sys.executable, "-m", "podidentity", *COMMANDS[repository]), _environment())
    if repository == "podidentity/lab-tools":
        return Image((), _environment())
    if not KEYVAULT_APP.is_dir():
        return None
    program = (sys.executable, "-m", "keyvault_app")
    return Image(program, {**_environment(), "PYTHONPATH": _python_path(str(KEYVAULT_APP))}, KEYVAULT_APP)


def unknown(name: str) -> str:
    """Return the sentence that says that the lab does not have an image, and which it has."""
    if "keyvault-aad-pod-identity" in name:
        return f"the sample application is not installed at {KEYVAULT_APP}: use the lab from a checkout of podidentity"
    names = ", ".join(f"{name}:*" for name in sorted({*COMMANDS, *_user_images()}))
    return f"the lab has no registry; it knows {names}; name more with PODIDENTITY_LAB_IMAGES"


def check(*, is_real: bool) -> None:
    """Raise `ConfigurationError` when `PODIDENTITY_LAB_IMAGES` names no directory; one may be made later.

    A real cluster (`is_real`) has containerd, which runs images and no directories: any name is an error there.
    """
    for name, path in _pairs():
        if is_real:
            message = (
                f"PODIDENTITY_LAB_IMAGES: {name}={path} is a directory, which the containerd of a real cluster cannot "
                "run; unset the variable, or start the lab without --kubernetes real"
            )
            raise ConfigurationError(message)
        if not (name and path) or Path(path).is_file():
            message = f"PODIDENTITY_LAB_IMAGES: {name}={path} names no directory; write NAME=DIRECTORY, commas between"
            raise ConfigurationError(message)


def _user_images() -> dict[str, Path]:
    """Return the directories of the user's own images by name, without those that do not exist yet."""
    return {name: Path(path).absolute() for name, path in _pairs() if Path(path).is_dir()}


def _pairs() -> list[tuple[str, str]]:
    items = filter(None, os.environ.get("PODIDENTITY_LAB_IMAGES", "").split(","))
    return [(name, path) for name, _, path in (item.partition("=") for item in items)]


def _environment() -> dict[str, str]:
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{_PATH}",
        "HOME": "/root",
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",  # the programs are shown read-only
        "SSL_CERT_FILE": CERTIFICATES,
        "REQUESTS_CA_BUNDLE": CERTIFICATES,
        "CURL_CA_BUNDLE": CERTIFICATES,
        "NODE_EXTRA_CA_CERTS": CERTIFICATES,
    }
    python_path = _python_path()
    return {**environment, "PYTHONPATH": python_path} if python_path else environment


def _python_path(*paths: str) -> str:
    """Return the PYTHONPATH of the lab's programs: `paths`, then the one that the lab itself was started with."""
    return ":".join(path for path in (*paths, *os.environ.get("PYTHONPATH", "").split(":")) if path)
