"""Several listening sockets at one port, each with a queue of its own: whoever fills one keeps nobody of another out.

The kernel chooses by a classic program (socket(7), SO_ATTACH_REUSEPORT_CBPF; bpf(2)): by the interface by which a
packet comes in, since what a host sends to an address of its own comes in by its loopback, whatever the address; or by
the client's address.
"""

import contextlib
import ctypes
import socket
import struct
from collections.abc import Callable, Sequence

_SO_ATTACH_REUSEPORT_CBPF = 51  # asm-generic/socket.h
_LOOPBACK_INDEX = 1  # net/loopback.h: of every network namespace
_INTERFACE_INDEX = 0xFFFFF000 + 8  # linux/filter.h: SKF_AD_OFF + SKF_AD_IFINDEX
_SOURCE_ADDRESS = 0xFFF00000 + 12  # linux/filter.h: SKF_NET_OFF, then RFC 791
_SOURCE_ADDRESS_END = 0xFFF00000 + 20  # likewise, RFC 8200: the last four of sixteen bytes
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06  # BPF_LD|BPF_W|BPF_ABS, BPF_JMP|BPF_JEQ|BPF_K, BPF_RET|BPF_K
_MODULO, _ADD, _RETURN_RESULT = 0x94, 0x04, 0x16  # BPF_ALU|BPF_MOD|BPF_K, BPF_ALU|BPF_ADD|BPF_K, BPF_RET|BPF_A
_INSTRUCTION = struct.Struct("=HBBI")
_Program = Sequence[tuple[int, int, int, int]]


def listen_apart(family: int, address: str, port: int, backlog: int, *, strangers: int = 1) -> list[socket.socket]:
    """Listen at `address` and `port`: first the socket of this host's own connections, then those of all others.

    Of these there are `strangers`, and neighbouring client addresses come to different ones. One socket for everybody
    where the kernel cannot tell them apart. Raises OSError, also when the port is taken.
    """
    with _bound(family, address, port, reuse_port=False) as alone:  # a shared port would hide that somebody has it
        port = alone.getsockname()[1]
    program = (
        (_LOAD, 0, 0, _INTERFACE_INDEX),
        (_JUMP_IF_EQUAL, 0, 1, _LOOPBACK_INDEX),
        (_RETURN, 0, 0, 0),  # the first socket that listened
        *_by_client(family, strangers),
        (_ADD, 0, 0, 1),
        (_RETURN_RESULT, 0, 0, 0),
    )
    return _listen_in_group(1 + strangers, program, lambda: _bound(family, address, port, reuse_port=True), backlog)


def listen_by_client(
    address: str, port: int, count: int, backlog: int, prepare: Callable[[socket.socket], None]
) -> list[socket.socket]:
    """Listen at an address and port with `count` sockets: neighbouring client addresses come to different ones.

    One socket for all where the kernel cannot choose. `prepare` sets options before a socket listens. Raises OSError,
    also when the port is taken.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with _bound(family, address, port, reuse_port=False) as alone:
        port = alone.getsockname()[1]

    def make() -> socket.socket:
        listener = _bound(family, address, port, reuse_port=True)
        prepare(listener)
        return listener

    return _listen_in_group(count, (*_by_client(family, count), (_RETURN_RESULT, 0, 0, 0)), make, backlog)


def _by_client(family: int, count: int) -> _Program:
    """Return the instructions that make a number below `count` of the client's address."""
    source = _SOURCE_ADDRESS_END if family == socket.AF_INET6 else _SOURCE_ADDRESS
    return (_LOAD, 0, 0, source), (_MODULO, 0, 0, count)


def _listen_in_group(
    count: int, program: _Program, make: Callable[[], socket.socket], backlog: int
) -> list[socket.socket]:
    """Let `count` sockets of one port listen, in the order in which `program` counts them; else the first alone."""
    listeners: list[socket.socket] = []
    try:
        for _ in range(count):
            listeners.append(make())
            listeners[-1].listen(backlog)
    except OSError:
        for listener in listeners:
            listener.close()
        raise
    text = b"".join(_INSTRUCTION.pack(*instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(text, len(text))
    option = struct.pack("@HP", len(program), ctypes.addressof(buffer))  # struct sock_fprog
    with contextlib.suppress(OSError):
        listeners[0].setsockopt(socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_CBPF, option)
        return listeners
    for listener in listeners[1:]:
        listener.close()
    return listeners[:1]


def _bound(family: int, address: str, port: int, *, reuse_port: bool) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setblocking(False)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, reuse_port)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((address, port))
    except OSError:
        listener.close()
        raise
    return listener
