"""Tells when anybody changes netfilter rules, routes or addresses of this host. Called by NMI's redirect.

It says only *that* something changed: what stands is always read back in full. The kernel drops messages of a socket
that is not read fast enough; that counts as a change too.
"""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

from podidentity.errors import HostError

# Numbers of linux/netlink.h, linux/netfilter/nfnetlink.h and linux/rtnetlink.h; Python's socket module lacks them.
_NETLINK_NETFILTER = 12
_NFTABLES_GROUP = 1 << (7 - 1)
_NETLINK_ROUTE = 0
_ROUTE_GROUPS = 0x10 | 0x40 | 0x80  # IPv4 addresses, IPv4 routes, IPv4 rules
_READ_BYTES = 1 << 16
_READS_AT_ONCE = 256  # the loop has other work; what is left wakes it again


@contextlib.asynccontextmanager
async def watch_host() -> AsyncIterator[asyncio.Event]:
    """Yield an event that is set at each change; the caller clears it. Raises `HostError` without the right."""
    changed = asyncio.Event()
    loop = asyncio.get_running_loop()
    with contextlib.ExitStack() as opened:
        for protocol, groups in ((_NETLINK_NETFILTER, _NFTABLES_GROUP), (_NETLINK_ROUTE, _ROUTE_GROUPS)):
            heard = opened.enter_context(_listen(protocol, groups))
            loop.add_reader(heard, _drain, heard, changed)
            opened.callback(loop.remove_reader, heard)
        yield changed


def _listen(protocol: int, groups: int) -> socket.socket:
    heard = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, protocol)
    try:
        heard.bind((0, groups))
    except OSError as error:
        heard.close()
        raise HostError(f"Cannot watch netfilter for changes ({error}). The capability NET_ADMIN is needed.") from None
    return heard


def _drain(heard: socket.socket, changed: asyncio.Event) -> None:
    changed.set()
    for _ in range(_READS_AT_ONCE):
        try:
            heard.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:  # ENOBUFS: messages were lost; the event is set, and that is all anybody needs
            continue
