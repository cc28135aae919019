"""A privileged container by runc, like one of `docker run --privileged`, with a network that leads nowhere."""

import json
import subprocess
import uuid
from pathlib import Path
from typing import Any

from podidentity_lab.linux.mounts import CAPABILITIES

CGROUPS = {
    "destination": "/sys/fs/cgroup",
    "type": "cgroup",
    "source": "cgroup",
    "options": ["nosuid", "noexec", "nodev", "rw"],
}
KERNEL_LOG = {"destination": "/dev/kmsg", "type": "bind", "source": "/dev/kmsg", "options": ["bind", "rw"]}
"""Docker shows a privileged container all devices; a kubelet reads this one."""


def run(root: Path, command: list[str], variables: dict[str, str], folder: Path) -> str:
    """Run a command to its end in the root of a container and return its output; `folder` is for runc's files."""
    name = f"podidentity-test-{uuid.uuid4().hex[:8]}"
    (folder / "config.json").write_text(json.dumps(_configuration(root, command, variables, name)))
    where = ("--root", str(folder / "state"))
    try:
        done = subprocess.run(
            ["runc", *where, "run", "--bundle", str(folder), name],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
    finally:
        subprocess.run(["runc", *where, "delete", "--force", name], check=False, capture_output=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _configuration(root: Path, command: list[str], variables: dict[str, str], name: str) -> dict[str, Any]:
    """Return the configuration of the OCI runtime specification, with all that this process may do."""
    plain = subprocess.run(["ctr", "oci", "spec"], capture_output=True, text=True, check=True).stdout
    spec: dict[str, Any] = json.loads(plain)
    process, linux = spec["process"], spec["linux"]
    capabilities = _capabilities()
    process["capabilities"] = dict.fromkeys(("bounding", "effective", "permitted"), capabilities)
    process |= {"args": command, "env": [f"{key}={value}" for key, value in variables.items()]}
    process["noNewPrivileges"] = False
    for field in ("rlimits", "terminal"):
        process.pop(field, None)
    linux |= {"maskedPaths": [], "readonlyPaths": [], "cgroupsPath": f"/{name}"}
    linux["resources"] = {"devices": [{"allow": True, "access": "rwm"}]}
    linux.pop("seccomp", None)
    mounts = [mount for mount in spec["mounts"] if mount["destination"] != CGROUPS["destination"]]
    for mount in mounts:
        mount["options"] = [option for option in mount.get("options", ()) if option != "ro"]
    return {**spec, "root": {"path": str(root)}, "mounts": [*mounts, CGROUPS, KERNEL_LOG]}


def _capabilities() -> list[str]:
    """Return the capabilities that this process can give away."""
    status = Path("/proc/self/status").read_text()
    mask = int(status.partition("CapBnd:")[2].split()[0], 16)
    return [f"CAP_{name}" for number, name in enumerate(CAPABILITIES) if mask >> number & 1]
