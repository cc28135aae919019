"""Notices when netfilter rules, routes or addresses of this host change.

It notices only *that* something changed: NMI then reads the present state back in full. The kernel drops messages of a
socket that is not read fast enough; that counts as a change too. Of netfilter only our own tables count: kube-proxy
rewrites its rules all day, and looking each time would cost more than everything else that NMI does.
"""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable

from podidentity.errors import HostError

# Numbers of linux/netlink.h, linux/netfilter/nfnetlink.h and linux/rtnetlink.h; Python's socket module lacks them.
_NETLINK_NETFILTER = 12
_NFTABLES_GROUP = 1 << (7 - 1)
_NETLINK_ROUTE = 0
_ROUTE_GROUPS = 0x10 | 0x40 | 0x80  # IPv4 addresses, IPv4 routes, IPv4 rules
_LINK_GROUP = 0x1
_READ_BYTES = 1 << 16
_READS_AT_ONCE = 256  # the loop has other work; what is left wakes it again

OWN_TABLES = b"podidentity"
"""What the names of all our tables begin with; every message about a table, a chain or a rule names its table."""


@contextlib.asynccontextmanager
async def watch_host(change: asyncio.Event, *, links: bool = False) -> AsyncIterator[None]:
    """Set `change` at each change while the body runs; the caller clears it. With `links`, also for interfaces.

    Raises `HostError` without the right.
    """
    loop = asyncio.get_running_loop()
    routing = _ROUTE_GROUPS | (_LINK_GROUP if links else 0)
    with contextlib.ExitStack() as stack:
        for protocol, groups, counts in (
            (_NETLINK_NETFILTER, _NFTABLES_GROUP, lambda message: OWN_TABLES in message),
            (_NETLINK_ROUTE, routing, lambda _: True),
        ):
            listener = stack.enter_context(_listen(protocol, groups))
            loop.add_reader(listener, _drain, listener, change, counts)
            stack.callback(loop.remove_reader, listener)
        yield


def _listen(protocol: int, groups: int) -> socket.socket:
    listener = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, protocol)
    try:
        listener.bind((0, groups))
    except OSError as error:
        listener.close()
        raise HostError(f"netfilter cannot be watched for changes ({error}); add the capability NET_ADMIN") from None
    return listener


def _drain(listener: socket.socket, change: asyncio.Event, counts: Callable[[bytes], bool]) -> None:
    for _ in range(_READS_AT_ONCE):
        try:
            if counts(listener.recv(_READ_BYTES)):
                change.set()
        except BlockingIOError:
            return
        except OSError:  # ENOBUFS: messages were lost, and nobody knows which
            change.set()
