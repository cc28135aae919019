"""Mounts, pivots and capabilities by the system calls themselves, for a process that prepares its own root.

Imports little: every container starts through it.
Numbers are from the kernel's uapi headers (linux/mount.h, linux/prctl.h, linux/capability.h).
"""

import ctypes
import os
from pathlib import Path

NOSUID, NODEV, NOEXEC = 0x2, 0x4, 0x8
READ_ONLY, REMOUNT, BIND, RECURSIVE = 0x1, 0x20, 0x1000, 0x4000
PRIVATE = 0x40000

CAPABILITIES = (
    *("CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP"),
    *("LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER"),
    *("SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE"),
    *("SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP"),
    *("MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF"),
    "CHECKPOINT_RESTORE",
)
"""The names of capabilities; a name's index is the kernel's number for it."""

_CLONE_NEWNS, _CLONE_NEWUSER = 0x20000, 0x10000000
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 24, 38
_SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_SYS_MOUNT_SETATTR = 442  # the same everywhere; Linux 5.12
_AT_FDCWD, _AT_RECURSIVE, _ATTR_READ_ONLY, _DETACH = -100, 0x8000, 0x1, 2

_libc = ctypes.CDLL(None, use_errno=True)


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    """Mount what the kernel calls `kind` at `target`. Raises `OSError` that names the target."""
    result = _libc.mount(
        source.encode(), target.encode(), kind.encode() or None, ctypes.c_ulong(flags), options.encode()
    )
    _check(result, target)


def bind(source: str, target: str, *, read_only: bool) -> None:
    """Show `source`, with all that is mounted in it, at `target`."""
    mount(source, target, flags=BIND | RECURSIVE)
    if read_only:
        # mount(2) would need the flags that a user namespace has locked; this call changes one and keeps the others.
        attributes = (ctypes.c_uint64 * 4)(_ATTR_READ_ONLY, 0, 0, 0)
        size = ctypes.c_size_t(ctypes.sizeof(attributes))
        number, path = ctypes.c_long(_SYS_MOUNT_SETATTR), target.encode()
        _check(_libc.syscall(number, _AT_FDCWD, path, _AT_RECURSIVE, ctypes.byref(attributes), size), target)


def change_root(path: str) -> None:
    """Make the mount at `path` the root of this process, and detach the old root."""
    os.chdir(path)
    _check(_libc.syscall(ctypes.c_long(_SYS_PIVOT_ROOT[os.uname().machine]), b".", b"."), path)
    _check(_libc.umount2(b".", _DETACH), "the old root")
    os.chdir("/")


def leave_for_own_mounts() -> None:
    """Give this process mounts of its own, which nobody else sees; without root, in a user namespace as the same user.

    What is executed from here on has no rights that it did not have before. Raises `OSError`.
    """
    uid, gid = os.geteuid(), os.getegid()
    kinds = _CLONE_NEWNS if uid == 0 else _CLONE_NEWNS | _CLONE_NEWUSER
    _check(_libc.unshare(ctypes.c_int(kinds)), "unshare")
    if uid != 0:
        for file, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            Path("/proc/self", file).write_text(text)
    mount("none", "/", flags=PRIVATE | RECURSIVE)


def set_hostname(name: str) -> None:
    """Set the host name of this UTS namespace."""
    text = name.encode()
    _check(_libc.sethostname(text, ctypes.c_size_t(len(text))), "hostname")


def keep_capabilities(names: frozenset[str]) -> None:
    """Let what is executed from here on have these capabilities at most."""
    for number, name in enumerate(CAPABILITIES):
        if name not in names:  # an older kernel does not know the last ones: nothing to drop
            _libc.prctl(_PR_CAPBSET_DROP, ctypes.c_ulong(number), 0, 0, 0)


def forbid_new_privileges() -> None:
    """From here on, no set-user-ID program gives rights to this process or to what it starts."""
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), 0, 0, 0), "prctl")


def _check(result: int, subject: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), subject)
