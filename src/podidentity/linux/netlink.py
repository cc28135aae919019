"""Asks the kernel for its lists of links, addresses, routes and filters, also of other namespaces. Decides nothing.

By hand and not through a library: five kinds of messages are read, and the
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
_ERROR, _END, _INTERRUPTED = 2, 3, 0x10
_GET_LINK, _GET_ADDRESS, _GET_ROUTE, _GET_QUEUE, _GET_FILTER, _GET_NAMESPACE = 18, 22, 26, 38, 46, 90

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
_GENERIC = struct.Struct("=Bxxx")  # rtgenmsg: family
_NAMESPACE_NUMBER = 1  # NETNSA_NSID
_TYPE_MASK = 0x3FFF

_LINK_NAMESPACE, _ADDRESS_NAMESPACE = 46, 10  # IFLA_TARGET_NETNSID, IFA_TARGET_NETNSID
_HARDWARE, _NAME, _PEER, _MASTER, _INFO, _PEER_NAMESPACE = 1, 3, 5, 10, 18, 37
_INFO_KIND, _QUEUE_KIND = 1, 1
_XDP, _XDP_ATTACHED = 43, 2
_LOCAL = 2

_READ_BYTES = 1 << 17
_TRIES = 5


class Link(NamedTuple):
    """One interface. `peer` and `namespace` say where the other end of a veth is; -1 when the kernel does not.

    Of a macvlan or ipvlan, `peer` is the interface that it hangs on. An interface of real hardware has no `kind`.
    """

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
    """Return the interfaces here, or in the namespace that this one knows under the number `namespace`.

    Another namespace is shown to whoever has NET_ADMIN over it: root of a host has, over its pods. Raises `HostError`.
    """
    request = _LINK.pack(0, 0, 0, 0, 0) + _target(_LINK_NAMESPACE, namespace)
    return tuple(_read_link(body) for body in _dump(_GET_LINK, request))


def addresses(namespace: int = -1) -> tuple[Address, ...]:
    """Return the IPv4 addresses here, or in another namespace as `links` does. Raises `HostError`."""
    request = _ADDRESS.pack(socket.AF_INET, 0, 0, 0, 0) + _target(_ADDRESS_NAMESPACE, namespace)
    return tuple(_read_address(body) for body in _dump(_GET_ADDRESS, request))


def namespaces() -> tuple[int, ...]:
    """Return the numbers under which this namespace knows others: those that one of its links leads to, or went to.

    Raises `HostError`.
    """
    bodies = _dump(_GET_NAMESPACE, _GENERIC.pack(0))
    return tuple(_number(_attributes(body[_GENERIC.size :]).get(_NAMESPACE_NUMBER)) for body in bodies)


def host_routes() -> dict[str, int]:
    """Return the index of the interface through which each IPv4 address is reached that has a route of its own.

    Raises `HostError`.
    """
    routes = {}
    for body in _dump(_GET_ROUTE, _ROUTE.pack(socket.AF_INET, 0, 0, 0, _MAIN_TABLE, 0, 0, 0, 0)):
        attributes = _attributes(body[_ROUTE.size :])
        if _ROUTE.unpack_from(body)[1] == _WHOLE_ADDRESS and _OUTPUT in attributes and _DESTINATION in attributes:
            routes[socket.inet_ntop(socket.AF_INET, attributes[_DESTINATION])] = _number(attributes[_OUTPUT])
    return routes


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
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_ROUTE) as netlink_socket:
            netlink_socket.setsockopt(_SOL_NETLINK, _STRICT, 1)
            netlink_socket.bind((0, 0))
            for _ in range(_TRIES):
                netlink_socket.send(_HEADER.pack(_HEADER.size + len(request), kind, _REQUEST_DUMP, 1, 0) + request)
                bodies, is_complete = _collect(netlink_socket)
                if is_complete:
                    return bodies
    except OSError as error:
        raise HostError(
            f"the kernel does not list network interfaces ({error}); Linux 5.0 or newer is needed"
        ) from None
    raise HostError("network interfaces changed each time they were listed; check that nothing makes them in a loop")


def _collect(netlink_socket: socket.socket) -> tuple[list[bytes], bool]:
    """Return the messages of one whole answer, and False when something changed while the kernel wrote it."""
    bodies: list[bytes] = []
    is_complete = True
    while True:
        for kind, flags, body in _messages(netlink_socket.recv(_READ_BYTES)):
            is_complete = is_complete and not flags & _INTERRUPTED
            if kind == _END:
                return bodies, is_complete
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
    attributes = {}
    while len(body) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(body)
        attributes[kind & _TYPE_MASK] = body[_ATTRIBUTE.size : length]
        body = body[_aligned(length) :]
    return attributes


def _read_link(body: bytes) -> Link:
    index = _LINK.unpack_from(body)[2]
    attributes = _attributes(body[_LINK.size :])
    kind = _attributes(attributes.get(_INFO, b"")).get(_INFO_KIND, b"")
    return Link(
        index,
        _text(attributes.get(_NAME, b"")),
        _text(kind),
        _number(attributes.get(_MASTER)),
        _number(attributes.get(_PEER)),
        _number(attributes.get(_PEER_NAMESPACE)),
        attributes.get(_HARDWARE, b"").hex(":"),
        any(_attributes(attributes.get(_XDP, b"")).get(_XDP_ATTACHED, b"")),
    )


def _read_address(body: bytes) -> Address:
    _, prefix, _, _, index = _ADDRESS.unpack_from(body)
    attributes = _attributes(body[_ADDRESS.size :])
    return Address(index, socket.inet_ntop(socket.AF_INET, attributes.get(_LOCAL, bytes(4))), prefix)


def _text(raw: bytes) -> str:
    return raw.rstrip(b"\0").decode("utf-8", "replace")


def _number(raw: bytes | None) -> int:
    number: int = _NUMBER.unpack(raw)[0] if raw else -1
    return number


def _aligned(length: int) -> int:
    return (length + 3) & ~3
