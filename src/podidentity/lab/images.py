"""Which program an image name means: one of this repository, or a directory of the user's.

The lab has no registry and unpacks no image. `PODIDENTITY_LAB_IMAGES` names more: `NAME=DIRECTORY`, with commas
between. Such a container sees its directory, read-only and where it is, and starts the program `run` in it, if any.

Called by the kubelets, and by `up` before a lab starts. `unknown` is the sentence of the event that a user sees for any
other image.
"""

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

import podidentity
from podidentity.errors import ConfigurationError
from podidentity.lab.sandbox.root import CERTIFICATES

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_CHECKOUT = Path(podidentity.__file__).resolve().parents[2]
KEYVAULT_APP = _CHECKOUT / "examples" / "keyvault-app"


@dataclass(frozen=True, slots=True)
class Image:
    """An image's entry point and environment; `directory` is shown to the container besides the usual ones."""

    entry_point: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    directory: Path | None = None


KNOWN = {
    "podidentity/nmi": ("nmi",),
    "podidentity/mic": ("mic",),
    "mcr.microsoft.com/oss/azure/aad-pod-identity/nmi": ("nmi",),
    "mcr.microsoft.com/oss/azure/aad-pod-identity/mic": ("mic",),
    "jcorioland/keyvault-aad-pod-identity": (),
    "podidentity/lab-tools": (),
}
"""Repository to the command of `podidentity` that it runs, () for others."""


def find(name: str) -> Image | None:
    """The program behind an image name, whatever its tag or digest; None when the lab has none."""
    repository = name.split("@", maxsplit=1)[0].removeprefix("docker.io/")
    head, _, last = repository.rpartition("/")
    repository = f"{head}/{last.partition(':')[0]}" if head else last.partition(":")[0]
    given = _given().get(repository)
    if given is not None:
        entry = given / "run"
        return Image((str(entry),) if entry.is_file() else (), _environment(), given)
    if repository not in KNOWN:
        return None
    if KNOWN[repository]:
        return Image((sys.executable, "-m", "podidentity", *KNOWN[repository]), _environment())
    if repository == "podidentity/lab-tools":
        return Image((), _environment())
    if not KEYVAULT_APP.is_dir():
        return None
    program = (sys.executable, "-m", "keyvault_app")
    return Image(program, {**_environment(), "PYTHONPATH": _python_path(str(KEYVAULT_APP))}, KEYVAULT_APP)


def unknown(name: str) -> str:
    """Why an image cannot be had, and what can."""
    if "keyvault-aad-pod-identity" in name:
        return f"the sample application is not installed at {KEYVAULT_APP}: use the lab from a checkout of podidentity"
    known = ", ".join(f"{one}:*" for one in sorted({*KNOWN, *_given()}))
    return f"the lab has no registry; it knows {known}; name more with PODIDENTITY_LAB_IMAGES"


def check() -> None:
    """Raise `ConfigurationError` when `PODIDENTITY_LAB_IMAGES` names no directory; one may be made later."""
    for name, path in _pairs():
        if not (name and path) or Path(path).is_file():
            told = f"PODIDENTITY_LAB_IMAGES: {name}={path} names no directory; write NAME=DIRECTORY, commas between"
            raise ConfigurationError(told)


def _given() -> dict[str, Path]:
    """The user's own: name to directory. One that is not there yet counts as not given."""
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
    own = _python_path()
    return {**environment, "PYTHONPATH": own} if own else environment


def _python_path(*more: str) -> str:
    """A lab that was started with PYTHONPATH needs it for its programs as well."""
    return ":".join(path for path in (*more, *os.environ.get("PYTHONPATH", "").split(":")) if path)
