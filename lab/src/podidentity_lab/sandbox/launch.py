"""First process of a container: makes its mounts, gives up its rights and becomes the container's program.

It runs in new namespaces, reads the plan of `sandbox.root` as JSON and reports `ok` or one sentence on a pipe. It
imports little, because every start of a container waits for it.
"""

import contextlib
import errno
import json
import os
import sys
from pathlib import Path
from typing import Any

from podidentity_lab.linux import mounts
from podidentity_lab.sandbox.paths import inside

CANNOT_START_STATUS = 128  # what container runtimes report when there never was a process

_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_PROTECTED = mounts.NOSUID | mounts.NODEV
_NO_PROGRAMS = _PROTECTED | mounts.NOEXEC


def main() -> None:
    """Start the program of the plan whose file is the first argument; the second is the pipe's descriptor.

    A third is a socket's, to which one end of a terminal goes: the other is all three streams of the program.
    """
    plan = json.loads(Path(sys.argv[1]).read_text())
    report = int(sys.argv[2])
    try:
        build(plan)
        if len(sys.argv) > 3:
            _take_terminal(int(sys.argv[3]), plan["user"])
        _give_up_rights(plan)
        program = _find(plan["command"][0], plan["environment"].get("PATH", os.defpath))
        os.write(report, b"ok\n")
        os.set_inheritable(report, False)
        os.execve(program, plan["command"], plan["environment"])  # noqa: S606  # no shell is what is wanted
    except OSError as error:
        cause = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        with contextlib.suppress(OSError):
            os.write(report, f"cannot start {plan['command'][0]!r}: {cause}\n".encode())
        sys.exit(CANNOT_START_STATUS)


def build(plan: dict[str, Any]) -> None:
    """Build the container's root and make it this process's root. Raises `OSError`."""
    root = plan["root"]
    mounts.mount("root", root, "tmpfs", _PROTECTED, "mode=755,size=256m")
    if plan["image"]:
        _lay_over(plan["image"], root)
    for path, mode in plan["directories"].items():
        _directory(inside(root, path), mode)
    for path, target in plan["links"].items():
        Path(root + path).symlink_to(target)
    for path, text in plan["files"].items():
        file = Path(inside(root, path))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    _kernel_mounts(root, privileged=plan["privileged"])
    for source, target, read_only in plan["binds"]:
        _bind(source, inside(root, target), read_only=read_only)
    if plan["image"]:  # container runtimes make the working directory, too
        _directory(inside(root, plan["working_directory"]), 0o755)
    if plan["read_only"]:
        mounts.mount("none", root, flags=mounts.REMOUNT | mounts.BIND | mounts.READ_ONLY | _PROTECTED)
    if plan["hostname"]:
        mounts.set_hostname(plan["hostname"])
    mounts.change_root(root)
    os.chdir(plan["working_directory"])


def _lay_over(image: str, root: str) -> None:
    """Mount the unpacked `image` at `root`, whose own directories take what is written: the image stays as it is."""
    upper, work = f"{root}/upper", f"{root}/work"
    for path in (upper, work):
        Path(path).mkdir()
    Path(upper).chmod(Path(image).stat().st_mode & 0o7777)
    lower = os.open(image, os.O_PATH | os.O_DIRECTORY)  # a path may have the commas and colons of mount options
    options = f"lowerdir=/proc/self/fd/{lower},upperdir={upper},workdir={work}"
    if not _is_root_of_all():
        options += ",userxattr"
    try:
        mounts.mount("image", root, "overlay", mounts.NODEV, options)
    except OSError as error:
        message = f"this machine cannot lay a container's files over its image (overlayfs: {error.strerror})"
        raise OSError(error.errno, message) from None
    finally:
        os.close(lower)


def _is_root_of_all() -> bool:
    """Whether this user namespace has all users: only then may overlayfs write attributes that are the kernel's."""
    return Path("/proc/self/uid_map").read_text().split()[2] == "4294967295"


def _directory(path: str, mode: int) -> None:
    if not Path(path).is_dir():
        Path(path).mkdir(parents=True)
        Path(path).chmod(mode)


def _kernel_mounts(root: str, *, privileged: bool) -> None:
    mounts.mount("proc", f"{root}/proc", "proc", _NO_PROGRAMS)
    if not privileged:
        mounts.bind(f"{root}/proc/sys", f"{root}/proc/sys", read_only=True)
    mounts.mount("sysfs", f"{root}/sys", "sysfs", _NO_PROGRAMS | mounts.READ_ONLY)
    mounts.mount("dev", f"{root}/dev", "tmpfs", mounts.NOSUID | mounts.NOEXEC, "mode=755,size=64k")
    for name in _DEVICES:
        _bind(f"/dev/{name}", f"{root}/dev/{name}", read_only=False)
    for name, kind, options in (("shm", "tmpfs", "mode=1777,size=64m"), ("pts", "devpts", "newinstance,ptmxmode=666")):
        Path(f"{root}/dev/{name}").mkdir()
        mounts.mount(name, f"{root}/dev/{name}", kind, mounts.NOSUID | mounts.NOEXEC, options)
    links = {"ptmx": "pts/ptmx", "fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"}
    for name, target in links.items():
        Path(f"{root}/dev/{name}").symlink_to(target)


def _bind(source: str, target: str, *, read_only: bool) -> None:
    if not Path(target).exists():
        if Path(source).is_dir():
            Path(target).mkdir(parents=True)
        else:
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            Path(target).touch()
    mounts.bind(source, target, read_only=read_only)


def _take_terminal(receiver: int, user: int) -> None:
    """Make a terminal of the container's own devpts this session's, and send the other end. Raises `OSError`."""
    import fcntl  # noqa: PLC0415  # few containers have a terminal, and every import delays them all
    import socket  # noqa: PLC0415  # likewise
    import termios  # noqa: PLC0415  # likewise

    lab_end, program_end = os.openpty()
    with socket.socket(fileno=receiver) as stream:
        socket.send_fds(stream, [b"t"], [lab_end])
    os.close(lab_end)
    with contextlib.suppress(OSError):  # a user that this lab does not have
        os.fchown(program_end, user, -1)
    os.setsid()
    fcntl.ioctl(program_end, termios.TIOCSCTTY, 0)
    for number in (0, 1, 2):
        os.dup2(program_end, number)


def _find(program: str, search: str) -> str:
    """Return the path of a program, found as a shell would: execve itself does not search.

    Raises `OSError` for one that is not there or not executable, so that it is told before `ok`: the kubelet takes that
    for a container that runs, and a rollout for a success.
    """
    if "/" in program:
        number = 0 if os.access(program, os.X_OK) else errno.EACCES if os.access(program, os.F_OK) else errno.ENOENT
        if number:
            raise OSError(number, os.strerror(number), program)
        return program
    for folder in search.split(":"):
        path = f"{folder}/{program}"
        if os.access(path, os.X_OK):
            return path
    raise FileNotFoundError(2, "not found on the container's PATH", program)


def _give_up_rights(plan: dict[str, Any]) -> None:
    if not plan["privileged"]:
        mounts.keep_capabilities(frozenset(plan["capabilities"]))
    if plan["no_new_privileges"]:
        mounts.forbid_new_privileges()
    if plan["group"] or plan["user"] or plan["groups"]:
        os.setgroups(plan["groups"])
        os.setgid(plan["group"])
        os.setuid(plan["user"])
    umask = 0o022
    os.umask(umask)


if __name__ == "__main__":
    main()
