"""Network namespaces: opens sockets in one, runs `ip` for one. Decides nothing about addresses.

Called by the lab and by tests. A thread enters the other namespace, opens the socket and ends: a socket stays in the
namespace that it was made in, so one event loop can serve many namespaces.
"""

import ctypes
import os
import socket
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from podidentity.errors import HostError
from podidentity.linux.commands import run

NAMED = Path("/run/netns")
"""Where `ip netns` keeps its namespaces."""

BACKLOG = 512

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)  # os.setns came with Python 3.12

T = TypeVar("T")


def within(namespace: str, action: Callable[[], T]) -> T:
    """Run `action` in a thread that is in the network namespace `namespace`; give its result or raise its error.

    `action` must be short: the caller waits. Raises `HostError` when there is no such namespace or no right to enter.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def enter() -> None:
        try:
            _set_network_namespace(namespace)
            results.append(action())
        except BaseException as error:  # noqa: BLE001  # handed to the caller below
            errors.append(error)

    # The thread ends with its task: a thread that is kept would be somewhere else for whoever uses it next.
    thread = threading.Thread(target=enter, name=f"netns-{namespace}")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def open_listener(namespace: str, address: str, port: int) -> socket.socket:
    """Open a listening TCP socket in `namespace`. Raises `HostError` and `OSError`."""
    return within(namespace, lambda: listener(address, port))


def open_stream(namespace: str) -> socket.socket:
    """Open a TCP socket in `namespace`, not yet connected and not blocking."""

    def make() -> socket.socket:
        stream = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        stream.setblocking(False)
        return stream

    return within(namespace, make)


def listener(address: str, port: int, *, interface: str = "") -> socket.socket:
    """Open a listening TCP socket where the caller is; with `interface` only for what arrives there."""
    opened = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if interface:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode() + b"\0")
        opened.setblocking(False)
        opened.bind((address, port))
        opened.listen(BACKLOG)
    except OSError:
        opened.close()
        raise
    return opened


def write_sysctl(namespace: str, name: str, value: str) -> None:
    """Set `net.*` in `namespace`; "" is the caller's own. `name` is written with slashes."""
    path = Path("/proc/sys") / name
    if namespace:
        within(namespace, lambda: path.write_text(value))
    else:
        path.write_text(value)


async def ip_batch(lines: Iterable[str], namespace: str = "") -> None:
    """Run many `ip` commands in one process, stopping at the first that fails. Raises `HostError`."""
    text = "".join(f"{line}\n" for line in lines)
    where = ("-netns", namespace) if namespace else ()
    await run("ip", *where, "-batch", "-", text=text)


def _set_network_namespace(namespace: str) -> None:
    path = NAMED / namespace
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise HostError(f"There is no network namespace {namespace!r}; `ip netns list` shows them.") from None
    try:
        if _libc.setns(descriptor, _CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise HostError(f"The network namespace {namespace!r} cannot be entered: {os.strerror(number)}.")
    finally:
        os.close(descriptor)
