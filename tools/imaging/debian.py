"""The system of the images: a Python, nft, conntrack, ip and the libraries they need, from Debian's packages.

No shell, no package manager, no compiler. Packages are unpacked, not installed: nothing in them has to run. Scanners
find each package in /var/lib/dpkg/status.d, and its licence in /usr/share/doc. Called by `image`.
"""

import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

WANTED = ("libpython{0}-stdlib", "python{0}-minimal", "nftables", "conntrack", "iproute2", "netbase")

# What a dependency brings for a package's installation or its shell, and no program of ours ever opens.
_UNWANTED = {
    *("dpkg", "tar", "debconf", "cdebconf", "libcap2-bin", "readline-common", "media-types", "mime-support"),
    *("libacl1", "libzstd1", "libmd0", "perl-base", "libdebconfclient0", "gcc-12-base", "gcc-14-base"),
}
_NEEDED_AFTER_ALL = {"libmd0", "libzstd1"}  # libbsd (nft's line editor) and libelf (ip) are linked with these

_EXTRA = {"base-files": ("etc/os-release", "usr/lib/os-release"), "coreutils": ("usr/bin/sleep", "bin/sleep")}
"""Single files of other packages: what the system calls itself, and how a container waits."""

_PYTHON_LEFT_OUT = (
    "idlelib",
    "lib2to3",
    "ensurepip",
    "distutils",
    "pydoc_data",
    "tkinter",
    "turtledemo",
    "test",
    "venv",
)
_SHARE_KEPT = ("doc", "iproute2")
_MERGED = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")

_FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/sbin/nologin\nnobody:x:65534:65534:nobody:/nonexistent:/sbin/nologin\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\nprotocols: files\nservices: files\n",
}
_DIRECTORIES = ("dev", "proc", "root", "run", "sys", "tmp", "var/tmp")


def python_version() -> str:
    """Which Python this Debian has, `3.11`."""
    shown = _apt("apt-cache", "show", "--no-all-versions", "libpython3-stdlib").stdout
    depends = next(line for line in shown.splitlines() if line.startswith("Depends:"))
    return depends.split("libpython", 1)[1].split("-stdlib", 1)[0]


def fetch(python: str, cache: Path) -> list[Path]:
    """Download the packages and all they depend on into `cache`; the files."""
    wanted = [name.format(python) for name in WANTED]
    listed = _apt("apt-get", "--simulate", *_empty_machine(cache), "install", *wanted).stdout
    needed = [line.split()[1] for line in listed.splitlines() if line.startswith("Inst ")]
    needed = [name for name in needed if name not in _UNWANTED or name in _NEEDED_AFTER_ALL]
    return download(sorted({*needed, *_EXTRA}), cache / "packages")


def download(names: Iterable[str], folder: Path) -> list[Path]:
    """Download exactly these packages into `folder`; the files."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    subprocess.run(["apt-get", "--quiet=2", "download", *names], cwd=folder, check=True)
    return sorted(folder.glob("*.deb"))


def unpack(packages: Iterable[Path], python: str, root: Path) -> None:
    """Unpack what is wanted of `packages` below `root`."""
    for name in _MERGED:
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    for name in _DIRECTORIES:
        (root / name).mkdir(parents=True, exist_ok=True)
    for package in packages:
        name = package.name.split("_", 1)[0]
        _unpack_one(package, name, python, root)
        control = subprocess.run(["dpkg-deb", "--field", str(package)], capture_output=True, text=True, check=True)
        listed = root / "var/lib/dpkg/status.d" / name
        listed.parent.mkdir(parents=True, exist_ok=True)
        listed.write_text(control.stdout)
    for path, text in _FILES.items():
        (root / path).write_text(text)
    (root / "usr/bin/python3").symlink_to(f"python{python}")


def extract(package: Path, files: Mapping[str, str], root: Path) -> None:
    """Put single files of a package, by path, where they are to be below `root`."""
    stream = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE)
    with stream, tarfile.open(fileobj=stream.stdout, mode="r|") as tar:
        for member in tar:
            member.name = files.get(member.name.removeprefix("./"), "")
            if member.name:
                tar.extract(member, root, filter="tar")


def _unpack_one(package: Path, name: str, python: str, root: Path) -> None:
    stream = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE)
    with stream, tarfile.open(fileobj=stream.stdout, mode="r|") as tar:
        for member in tar:
            path = PurePosixPath(member.name.removeprefix("./"))
            if member.isdir() or not _is_wanted(path, name, python):
                continue
            member.name = str(_merged(path))
            if member.islnk():
                member.linkname = str(_merged(PurePosixPath(member.linkname.removeprefix("./"))))
            tar.extract(member, root, filter="tar")
    if stream.returncode:
        raise subprocess.CalledProcessError(stream.returncode, stream.args)


def _is_wanted(path: PurePosixPath, package: str, python: str) -> bool:
    parts, text = path.parts, str(path)
    if parts[:3] == ("usr", "share", "doc"):
        return path.name == "copyright"
    if package in _EXTRA:
        return text in _EXTRA[package]
    if parts[:2] == ("usr", "share"):
        return parts[2] in _SHARE_KEPT
    if parts[:3] == ("usr", "lib", f"python{python}"):
        return parts[3] not in _PYTHON_LEFT_OUT and not parts[3].startswith("config-")
    return "gconv" not in parts and not text.startswith(("var/", "usr/include/"))


def _merged(path: PurePosixPath) -> PurePosixPath:
    return PurePosixPath("usr", path) if path.parts[0] in _MERGED else path


def _empty_machine(cache: Path) -> list[str]:
    """Make apt believe that nothing is installed: it then lists everything that is needed."""
    status = cache / "status"
    status.parent.mkdir(parents=True, exist_ok=True)
    status.write_text("")
    return ["-o", f"Dir::State::status={status}", "-o", "APT::Install-Recommends=false"]


def _apt(*command: str) -> subprocess.CompletedProcess[str]:
    """Run apt; with fresh lists when it does not know a package."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not done.stdout.strip():
        if os.geteuid() == 0:
            subprocess.run(["apt-get", "--quiet=2", "update"], check=True, stdout=subprocess.DEVNULL)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not done.stdout.strip():
        raise SystemExit(
            f"`{' '.join(command)}` failed: {done.stderr.strip()}. Is this a Debian with fresh package lists?"
        )
    return done
