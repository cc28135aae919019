"""Network namespaces: opens sockets in one and runs `ip` for one. Decides nothing about addresses.

A thread enters the other namespace, opens the socket and ends: a socket stays in the namespace in which it was made, so
one event loop can serve many namespaces.
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

NAMESPACES_DIRECTORY = Path("/run/netns")
"""Where `ip netns` keeps the namespaces that have a name."""

BACKLOG = 512

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)  # os.setns came with Python 3.12

T = TypeVar("T")


def run_in_namespace(namespace: str, action: Callable[[], T]) -> T:
    """Run `action` in a thread that is in the network namespace `namespace`; return its result or raise its error.

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
    return run_in_namespace(namespace, lambda: listener(address, port))


def open_stream(namespace: str) -> socket.socket:
    """Open a TCP socket in `namespace`, not yet connected and not blocking."""

    def make() -> socket.socket:
        stream = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # as in `listener`
        stream.setblocking(False)
        return stream

    return run_in_namespace(namespace, make)


def listener(address: str, port: int, *, interface: str = "") -> socket.socket:
    """Open a listening TCP socket where the caller is; with `interface` only for what arrives there."""
    # asyncio sends at once (TCP_NODELAY) only where a socket names its protocol: else an answer in two writes, head and
    # body, waits 40 ms for the client's acknowledgement of the first.
    server_socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        server_socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if interface:
            server_socket.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode() + b"\0")
        server_socket.setblocking(False)
        server_socket.bind((address, port))
        server_socket.listen(BACKLOG)
    except OSError:
        server_socket.close()
        raise
    return server_socket


def write_sysctl(namespace: str, name: str, value: str) -> None:
    """Set `net.*` in `namespace`; "" is the caller's own. `name` is written with slashes."""
    path = Path("/proc/sys") / name
    if namespace:
        run_in_namespace(namespace, lambda: path.write_text(value))
    else:
        path.write_text(value)


async def ip_batch(lines: Iterable[str], namespace: str = "") -> None:
    """Run many `ip` commands in one process, stopping at the first that fails. Raises `HostError`."""
    text = "".join(f"{line}\n" for line in lines)
    options = ("-netns", namespace) if namespace else ()
    await run("ip", *options, "-batch", "-", text=text)


def _set_network_namespace(namespace: str) -> None:
    path = NAMESPACES_DIRECTORY / namespace
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise HostError(
            f"network namespace {namespace!r}: it does not exist; `ip netns list` shows those that do"
        ) from None
    try:
        if _libc.setns(descriptor, _CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise HostError(f"network namespace {namespace!r}: {os.strerror(number)}; enter it as root")
    finally:
        os.close(descriptor)
