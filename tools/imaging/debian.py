"""The system of the images: a Python, an init, nft, conntrack, ip and the libraries they need, from Debian's packages.

mmdebstrap fetches, checks and extracts them; `system.paths` says which of their files the images get. Nothing in
them is run, so neither root nor a namespace is needed. Scanners find each package in /var/lib/dpkg/status.d, and its
licence in /usr/share/doc.
"""

import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

SUITE = "bookworm"
PYTHON = "3.11"
"""The Python of this Debian."""
PACKAGES = (
    *("base-files", "conntrack", "coreutils", f"libpython{PYTHON}-stdlib", "nftables", "iproute2", "netbase"),
    "tini",
)
PATHS = Path(__file__).with_name("system.paths")

_FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/sbin/nologin\nnobody:x:65534:65534:nobody:/nonexistent:/sbin/nologin\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\nprotocols: files\nservices: files\n",
}
_DIRECTORIES = ("dev", "proc", "root", "run", "sys", "tmp", "var/lib/dpkg/status.d", "var/tmp")
# Files of apt and mmdebstrap that only a system that installs packages needs.
_LEFTOVERS = ("dev", "var", "etc/apt", "etc/dpkg", "etc/fstab", "etc/hostname", "etc/resolv.conf")
_HOOKS = Path("/usr/share/mmdebstrap/hooks/merged-usr")


def make_root(root: Path) -> None:
    """Write the system below `root`, a directory that does not exist yet. Raise `SystemExit` without mmdebstrap."""
    extract([*PACKAGES, f"python{PYTHON}-minimal"], PATHS, root)
    packages = sorted((root / "var/cache/apt/archives").glob("*.deb"))
    contained = {package: _control(package) for package in packages if _is_in(root, package)}
    _keep_licences(root, contained)
    for path in _LEFTOVERS:
        _remove(root / path)
    for name in _DIRECTORIES:
        (root / name).mkdir(parents=True, exist_ok=True)
    for name in ("tmp", "var/tmp"):
        (root / name).chmod(0o1777)
    for package, control in contained.items():
        (root / "var/lib/dpkg/status.d" / package.name.split("_", 1)[0]).write_text(control)
    for name, text in _FILES.items():
        (root / name).write_text(text)
    (root / "usr/bin/python3").symlink_to(f"python{PYTHON}")
    _remove_empty(root)


def run_python(system: Path, *arguments: str) -> None:
    """Run the Python of the root `system` on this machine, by its own loader: that needs no root."""
    loader = next((system / "usr").glob("lib*/**/ld-linux-*"))
    libraries = next((system / "usr/lib").glob("*-linux-gnu"))
    command = [loader, "--library-path", libraries, system / f"usr/bin/python{PYTHON}", "-s", *arguments]
    environment = {"PYTHONHOME": str(system / "usr"), "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run([str(word) for word in command], env=environment, check=True)


def extract(packages: Iterable[str], paths: Path, root: Path) -> None:
    """Extract from `packages` and all that they depend on the files that `paths` lets through; apt's files stay."""
    if not shutil.which("mmdebstrap"):
        raise SystemExit("mmdebstrap: it is not installed; run tools/debian-packages mmdebstrap:mmdebstrap")
    command = ["mmdebstrap", "--quiet", "--mode=chrootless", "--variant=extract", "--format=directory"]
    command += [f"--include={','.join(packages)}", f"--hook-dir={_HOOKS}", f"--dpkgopt={paths}"]
    command += ["--skip=cleanup/apt"]
    process = subprocess.run([*command, SUITE, str(root)], capture_output=True, text=True, check=False)
    if process.returncode:
        raise SystemExit(f"mmdebstrap: it could not make {root}; its output:\n{process.stderr.strip()}")


def _is_in(root: Path, package: Path) -> bool:
    """Whether any file of the package but its licence is below `root`."""
    for path in _run("dpkg-deb", "--contents", str(package)).splitlines():
        name = path.split(maxsplit=5)[5].removeprefix("./").split(" -> ", 1)[0].split(" link to ", 1)[0]
        if name and not name.endswith("/") and not name.startswith("usr/share/doc/") and os.path.lexists(root / name):
            return True
    return False


def _keep_licences(root: Path, packages: Iterable[Path]) -> None:
    """Leave the licences of `packages` alone in /usr/share/doc, and those that some of them share by a link."""
    documents, names = root / "usr/share/doc", set()
    for package in packages:
        name = package.name.split("_", 1)[0]
        names.add(name)
        for path in _run("dpkg-deb", "--contents", str(package)).splitlines():
            link, _, target = path.partition(" -> ")
            if target and link.endswith(f" ./usr/share/doc/{name}") and not os.path.lexists(documents / name):
                (documents / name).symlink_to(target)
                names.add(target)
    for licence in documents.iterdir():
        if licence.name not in names:
            _remove(licence)


def _control(package: Path) -> str:
    return _run("dpkg-deb", "--field", str(package))


def _run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _remove_empty(root: Path) -> None:
    """Remove directories that only packages' files would have filled."""
    for folder, _, _ in os.walk(root, topdown=False):
        path = Path(folder)
        if path != root and str(path.relative_to(root)) not in _DIRECTORIES and not any(path.iterdir()):
            path.rmdir()
