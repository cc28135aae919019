"""Mounts, pivots and capabilities by the system calls themselves, for a process that prepares its own root.

Called by the lab only, in mount namespaces of its own. Imports little: every container starts through it.
Numbers are from the kernel's uapi headers (linux/mount.h, linux/prctl.h, linux/capability.h).
"""

import ctypes
import os

NOSUID, NODEV, NOEXEC = 0x2, 0x4, 0x8
READ_ONLY, REMOUNT, BIND, RECURSIVE = 0x1, 0x20, 0x1000, 0x4000

CAPABILITIES = (
    *("CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP"),
    *("LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER"),
    *("SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE"),
    *("SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP"),
    *("MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF"),
    "CHECKPOINT_RESTORE",
)
"""By number, from 0."""

_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 24, 38
_SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_SYS_MOUNT_SETATTR = 442  # the same everywhere; Linux 5.12
_AT_FDCWD, _AT_RECURSIVE, _ATTR_READ_ONLY, _DETACH = -100, 0x8000, 0x1, 2

_libc = ctypes.CDLL(None, use_errno=True)


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    """Mount what the kernel calls `kind` at `target`. Raises `OSError` that names the target."""
    done = _libc.mount(source.encode(), target.encode(), kind.encode() or None, ctypes.c_ulong(flags), options.encode())
    _check(done, target)


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
    """Make the mount at `path` the root, and forget the old one."""
    os.chdir(path)
    _check(_libc.syscall(ctypes.c_long(_SYS_PIVOT_ROOT[os.uname().machine]), b".", b"."), path)
    _check(_libc.umount2(b".", _DETACH), "the old root")
    os.chdir("/")


def set_hostname(name: str) -> None:
    """Name this UTS namespace."""
    text = name.encode()
    _check(_libc.sethostname(text, ctypes.c_size_t(len(text))), "hostname")


def keep_capabilities(names: frozenset[str]) -> None:
    """Let what is executed from here on have these capabilities at most."""
    for number, name in enumerate(CAPABILITIES):
        if name not in names:  # an older kernel does not know the last ones: nothing to drop
            _libc.prctl(_PR_CAPBSET_DROP, ctypes.c_ulong(number), 0, 0, 0)


def forbid_new_privileges() -> None:
    """No set-user-ID program gives rights from here on."""
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), 0, 0, 0), "prctl")


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
