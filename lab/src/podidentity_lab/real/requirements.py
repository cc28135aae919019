"""What a machine must have for a real cluster, checked before anything starts."""

import os
import shutil
from collections.abc import Callable

from podidentity.errors import HostError
from podidentity_lab.real import images, program
from podidentity_lab.real.machine import PLUGINS

_PACKAGES = {
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "conntrack": "conntrack",
    "mount": "mount",
}


def meet(say: Callable[[str], None], *, path: str, rootless: bool) -> None:
    """Check the rights, programs and images, and build Kubernetes if need be. Raises `HostError` and `LabError`."""
    if os.geteuid() != 0 or rootless:
        raise HostError(
            "a real cluster needs root: its kubelets and runc make devices and control groups; run it with sudo"
        )
    missing = {package for name, package in _PACKAGES.items() if shutil.which(name, path=path) is None}
    if not (PLUGINS / "host-local").exists():
        missing.add("containernetworking-plugins")
    if missing:
        raise HostError(f"a real cluster needs the Debian packages {' '.join(sorted(missing))}; apt-get install them")
    images.archives()
    program.ensure(say)
