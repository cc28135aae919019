"""Frames that no network stack would send, written byte by byte and put on a pod's interface."""

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator, Sequence

from system.redirect.network import IMDS, Namespace
from system.redirect.traffic import SYN, checksum, segment

IPV4, ARP = 0x0800, 0x0806
CUSTOMER_TAG, SERVICE_TAG = 0x8100, 0x88A8
EVERYBODY = "ff:ff:ff:ff:ff:ff"
_ALL = 0x0003


def frame(target: str, source: str, kind: int, payload: bytes, tags: Sequence[int] = ()) -> bytes:
    """Write an Ethernet frame with priority tags (VLAN 0) of these kinds, the outer one first."""
    tagged = b"".join(struct.pack("!HH", tag, 0) for tag in tags)
    return _mac(target) + _mac(source) + tagged + struct.pack("!H", kind) + payload


def arp_claim(hardware: str, address: str, asked: str) -> bytes:
    """Write an ARP request for `asked` in which `address` is said to be at `hardware`."""
    head = struct.pack("!HHBBH", 1, IPV4, 6, 4, 1)
    return head + _mac(hardware) + socket.inet_aton(address) + bytes(6) + socket.inet_aton(asked)


def syn(source: str, source_port: int = 33333) -> bytes:
    """Write an IPv4 packet that opens a connection from `source` to IMDS."""
    tcp = segment(source, source_port, 80, SYN)
    ends = socket.inet_aton(source) + socket.inet_aton(IMDS)
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 1, 0, 64, 6, 0) + ends
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + tcp


def send_frames(pod: Namespace, *frames: bytes) -> None:
    """Put frames on the pod's interface."""

    def act() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
            wire.bind(("eth0", 0))
            for one in frames:
                wire.send(one)

    pod.call(act)


@contextlib.contextmanager
def listening_in(pod: Namespace) -> Iterator[list[bytes]]:
    """Collect everything that arrives at the pod's interface, for whomever it is meant."""
    heard: list[bytes] = []
    wire = pod.call(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL)))
    wire.bind(("eth0", _ALL))
    wire.settimeout(0.05)
    stop = threading.Event()

    def collect() -> None:
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                heard.append(wire.recv(65536))

    thread = threading.Thread(target=collect, daemon=True)
    thread.start()
    try:
        yield heard
    finally:
        stop.set()
        thread.join(10)
        wire.close()


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))
