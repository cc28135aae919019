"""Which program an image name means: one of this repository, or a directory of the user's.

These are programs of this machine, not unpacked images: `oci` has those of `lab load` and of the lab's registry.
`PODIDENTITY_LAB_IMAGES` names more: `NAME=DIRECTORY`, with commas between. Such a container sees its directory,
read-only and where it is, and starts the program `run` in it, if any.

For any other image, the pod's event is the sentence of `unknown`.
"""

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

from podidentity.errors import ConfigurationError
from podidentity_lab.data import KEYVAULT_APP
from podidentity_lab.oci.library import UnpackedImage
from podidentity_lab.sandbox.root import CERTIFICATES

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_TRUST = dict.fromkeys(("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"), CERTIFICATES)


@dataclass(frozen=True, slots=True)
class Image:
    """An image's program and environment; the container also sees `directory`.

    `arguments` follow the entry point where the pod gives neither. `root` is an unpacked image, which takes the place
    of this machine's programs; `user` is as the image says it: `NAME` or `UID`, perhaps with `:GROUP`.
    """

    entry_point: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    directory: Path | None = None
    arguments: tuple[str, ...] = ()
    root: Path | None = None
    user: str = ""
    working_directory: str = "/"


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
    directory = directories().get(repository)
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
    names = ", ".join(f"{name}:*" for name in sorted({*COMMANDS, *directories()}))
    return (
        f"the lab reaches no registry but its own; it knows {names}; bring another image with `podidentity lab load`, "
        "or name a directory in PODIDENTITY_LAB_IMAGES"
    )


def check() -> None:
    """Raise `ConfigurationError` when `PODIDENTITY_LAB_IMAGES` names no directory; one may be made later."""
    for name, path in _pairs():
        if not (name and path) or Path(path).is_file():
            message = f"PODIDENTITY_LAB_IMAGES: {name}={path} names no directory; write NAME=DIRECTORY, commas between"
            raise ConfigurationError(message)


def directories() -> dict[str, Path]:
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
        **_TRUST,
    }
    python_path = _python_path()
    return {**environment, "PYTHONPATH": python_path} if python_path else environment


def unpacked(image: UnpackedImage) -> Image:
    """Return what to run of an unpacked image, which also trusts the lab's Azure, as on a node of a real cluster."""
    program = image.config
    return Image(
        entry_point=program.entry_point,
        environment={"PATH": _PATH, **_TRUST, **program.environment},
        arguments=program.arguments,
        root=image.root,
        user=program.user,
        working_directory=program.working_directory,
    )


def _python_path(*paths: str) -> str:
    """Return the PYTHONPATH of the lab's programs: `paths`, then the one that the lab itself was started with."""
    return ":".join(path for path in (*paths, *os.environ.get("PYTHONPATH", "").split(":")) if path)
