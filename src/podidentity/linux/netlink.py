"""Asks the kernel for its lists of links, addresses, routes and filters, also of other namespaces. Decides nothing.

Called by `bridges` and `datapath`. By hand and not through a library: five kinds of messages are read, and the
libraries cost more memory than the whole daemon may. Numbers are of linux/netlink.h, linux/rtnetlink.h and
linux/if_link.h.
"""

import errno
import os
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

from podidentity.errors import HostError

_NETLINK_ROUTE = 0
_SOL_NETLINK, _STRICT = 270, 12  # NETLINK_GET_STRICT_CHK, Linux 5.0: only then are other namespaces asked
_REQUEST_DUMP = 0x1 | 0x300
_ERROR, _DONE, _INTERRUPTED = 2, 3, 0x10
_GET_LINK, _GET_ADDRESS, _GET_ROUTE, _GET_QUEUE, _GET_FILTER = 18, 22, 26, 38, 46

_HEADER = struct.Struct("=IHHII")
_LINK = struct.Struct("=BxHiII")  # ifinfomsg: family, type, index, flags, change
_ADDRESS = struct.Struct("=BBBBI")  # ifaddrmsg: family, prefix length, flags, scope, index
_ROUTE = struct.Struct("=BBBBBBBBI")  # rtmsg: family, two prefix lengths, service, table, protocol, scope, type, flags
_MAIN_TABLE, _WHOLE_ADDRESS = 254, 32
_DESTINATION, _OUTPUT = 1, 4
_QUEUE = struct.Struct("=BxxxiIII")  # tcmsg: family, interface, handle, parent, info
_INGRESS = 0xFFFFFFF2  # TC_H_CLSACT and TC_H_MIN_INGRESS: where what an interface receives is filtered
_ATTRIBUTE = struct.Struct("=HH")
_NUMBER = struct.Struct("=i")
_TYPE_MASK = 0x3FFF

_LINK_NAMESPACE, _ADDRESS_NAMESPACE = 46, 10  # IFLA_TARGET_NETNSID, IFA_TARGET_NETNSID
_HARDWARE, _NAME, _PEER, _MASTER, _INFO, _PEER_NAMESPACE = 1, 3, 5, 10, 18, 37
_INFO_KIND, _QUEUE_KIND = 1, 1
_XDP, _XDP_ATTACHED = 43, 2
_LOCAL = 2

_READ_BYTES = 1 << 17
_TRIES = 5


class Link(NamedTuple):
    """One interface. `peer` and `namespace` say where the other end of a veth is; -1 when the kernel does not."""

    interface: int
    name: str
    kind: str
    master: int
    peer: int
    namespace: int
    hardware: str
    xdp: bool = False


class Address(NamedTuple):
    """One IPv4 address of an interface."""

    interface: int
    address: str
    prefix: int


def links(namespace: int = -1) -> tuple[Link, ...]:
    """List the interfaces here, or in the namespace that this one knows under the number `namespace`.

    Another namespace is shown to whoever has NET_ADMIN over it: root of a host has, over its pods. Raises `HostError`.
    """
    request = _LINK.pack(0, 0, 0, 0, 0) + _target(_LINK_NAMESPACE, namespace)
    return tuple(_read_link(body) for body in _dump(_GET_LINK, request))


def addresses(namespace: int = -1) -> tuple[Address, ...]:
    """List the IPv4 addresses likewise. Raises `HostError`."""
    request = _ADDRESS.pack(socket.AF_INET, 0, 0, 0, 0) + _target(_ADDRESS_NAMESPACE, namespace)
    return tuple(_read_address(body) for body in _dump(_GET_ADDRESS, request))


def host_routes() -> dict[str, int]:
    """Say through which interface each single IPv4 address is reached that has a route of its own.

    Raises `HostError`.
    """
    found = {}
    for body in _dump(_GET_ROUTE, _ROUTE.pack(socket.AF_INET, 0, 0, 0, _MAIN_TABLE, 0, 0, 0, 0)):
        told = _attributes(body[_ROUTE.size :])
        if _ROUTE.unpack_from(body)[1] == _WHOLE_ADDRESS and _OUTPUT in told and _DESTINATION in told:
            found[socket.inet_ntop(socket.AF_INET, told[_DESTINATION])] = _number(told[_OUTPUT])
    return found


def filtered() -> tuple[int, ...]:
    """Return the indexes of the interfaces whose received packets pass BPF programs of `tc`. Raises `HostError`."""
    try:
        queues = _dump(_GET_QUEUE, _QUEUE.pack(0, 0, 0, 0, 0))
    except HostError:  # a kernel without packet schedulers has no programs in them
        return ()
    filterable = sorted({_QUEUE.unpack_from(body)[1] for body in queues if _kind(body) in {"clsact", "ingress"}})
    return tuple(
        index
        for index in filterable
        if any(_kind(body) == "bpf" for body in _dump(_GET_FILTER, _QUEUE.pack(0, index, 0, _INGRESS, 0)))
    )


def _kind(body: bytes) -> str:
    return _text(_attributes(body[_QUEUE.size :]).get(_QUEUE_KIND, b""))


def _target(attribute: int, namespace: int) -> bytes:
    return b"" if namespace < 0 else _ATTRIBUTE.pack(8, attribute) + _NUMBER.pack(namespace)


def _dump(kind: int, request: bytes) -> list[bytes]:
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_ROUTE) as asked:
            asked.setsockopt(_SOL_NETLINK, _STRICT, 1)
            asked.bind((0, 0))
            for _ in range(_TRIES):
                asked.send(_HEADER.pack(_HEADER.size + len(request), kind, _REQUEST_DUMP, 1, 0) + request)
                bodies, whole = _collect(asked)
                if whole:
                    return bodies
    except OSError as error:
        raise HostError(
            f"The kernel does not list network interfaces ({error}). Linux 5.0 or newer is needed."
        ) from None
    raise HostError("The list of network interfaces changed each time it was read. Is something making them in a loop?")


def _collect(asked: socket.socket) -> tuple[list[bytes], bool]:
    """Read one whole answer; False when something changed while the kernel wrote it."""
    bodies: list[bytes] = []
    whole = True
    while True:
        for kind, flags, body in _messages(asked.recv(_READ_BYTES)):
            whole = whole and not flags & _INTERRUPTED
            if kind == _DONE:
                return bodies, whole
            if kind == _ERROR:
                number = -_NUMBER.unpack_from(body)[0]
                raise OSError(number or errno.EPROTO, os.strerror(number))
            bodies.append(body)


def _messages(received: bytes) -> Iterator[tuple[int, int, bytes]]:
    while received:
        length, kind, flags, _, _ = _HEADER.unpack_from(received)
        yield kind, flags, received[_HEADER.size : length]
        received = received[_aligned(length) :]


def _attributes(body: bytes) -> dict[int, bytes]:
    found = {}
    while len(body) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(body)
        found[kind & _TYPE_MASK] = body[_ATTRIBUTE.size : length]
        body = body[_aligned(length) :]
    return found


def _read_link(body: bytes) -> Link:
    index = _LINK.unpack_from(body)[2]
    told = _attributes(body[_LINK.size :])
    kind = _attributes(told.get(_INFO, b"")).get(_INFO_KIND, b"")
    return Link(
        index,
        _text(told.get(_NAME, b"")),
        _text(kind),
        _number(told.get(_MASTER)),
        _number(told.get(_PEER)),
        _number(told.get(_PEER_NAMESPACE)),
        told.get(_HARDWARE, b"").hex(":"),
        any(_attributes(told.get(_XDP, b"")).get(_XDP_ATTACHED, b"")),
    )


def _read_address(body: bytes) -> Address:
    _, prefix, _, _, index = _ADDRESS.unpack_from(body)
    told = _attributes(body[_ADDRESS.size :])
    return Address(index, socket.inet_ntop(socket.AF_INET, told.get(_LOCAL, bytes(4))), prefix)


def _text(raw: bytes) -> str:
    return raw.rstrip(b"\0").decode("utf-8", "replace")


def _number(raw: bytes | None) -> int:
    number: int = _NUMBER.unpack(raw)[0] if raw else -1
    return number


def _aligned(length: int) -> int:
    return (length + 3) & ~3
