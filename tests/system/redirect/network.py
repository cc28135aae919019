"""A node with two pods and a stand-in for the real IMDS behind its uplink, in network namespaces of the test process.

The namespaces live as long as this process holds them open: nothing stays behind, not even after SIGKILL. Nothing of
the machine's own network is touched.
"""

import contextlib
import ctypes
import os
import socket
import subprocess
import threading
from collections.abc import Callable
from typing import Any, Self, TypeVar

import pytest

from podidentity.linux.nftables import Chain, Table, render

IMDS = "169.254.169.254"
WIRESERVER = "168.63.129.16"
NODE = "192.168.77.10"
PODS = ("10.244.7.2", "10.244.7.3")
BRIDGE = "10.244.7.1"

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)

T = TypeVar("T")


class Namespace:
    """A network namespace, entered by threads of their own."""

    def __init__(self) -> None:
        self._fd = -1
        thread = threading.Thread(target=self._make)
        thread.start()
        thread.join()
        if self._fd < 0:
            raise OSError("cannot make a network namespace; run as root or under `unshare --user --map-root-user`")
        self.path = f"/proc/{os.getpid()}/fd/{self._fd}"
        self.run("ip link set lo up")

    def _make(self) -> None:
        if _libc.unshare(_CLONE_NEWNET) == 0:
            self._fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY)

    def call(self, function: Callable[[], T], timeout_seconds: float | None = 100.0) -> T:
        """Run `function` in a thread inside and give back what it returns or raises; None: however long it takes."""
        outcome: list[Any] = []
        thread = threading.Thread(target=self._enter, args=(function, outcome), daemon=True)
        thread.start()
        thread.join(timeout_seconds)
        assert outcome, f"{function} did not end within {timeout_seconds} s"
        ok, value = outcome[0]
        if not ok:
            raise value
        result: T = value
        return result

    def _enter(self, function: Callable[[], Any], outcome: list[Any]) -> None:
        if _libc.setns(self._fd, _CLONE_NEWNET) != 0:
            outcome.append((False, OSError(ctypes.get_errno(), "setns")))
            return
        try:
            outcome.append((True, function()))
        except BaseException as error:  # noqa: BLE001  # given on to the caller's thread
            outcome.append((False, error))

    def run(self, commands: str) -> str:
        """Run shell lines inside; raises when one fails."""
        done = self.call(
            lambda: subprocess.run(
                ["/bin/sh", "-e"], input=commands, text=True, capture_output=True, timeout=30, check=False
            )
        )
        assert done.returncode == 0, f"{commands}\n{done.stderr}"
        return done.stdout

    def popen(self, *command: str, **options: Any) -> subprocess.Popen[bytes]:
        """Start a process inside."""
        return self.call(lambda: subprocess.Popen(command, **options))

    def listen(self, address: str, port: int) -> socket.socket:
        """Open a listening socket inside."""
        return self.call(lambda: socket.create_server((address, port), backlog=256))

    def close(self) -> None:
        """Let the namespace go."""
        os.close(self._fd)


def need_namespaces() -> None:
    """Skip, loudly, where network namespaces may not be made; with CI set that is an error."""
    try:
        Namespace().close()
    except (OSError, AssertionError) as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"{error}")


class Network:
    """`kind` is "bridge" or "routed": how pods hang on the node."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._made = 0
        self._counted = (0, 0)
        with contextlib.ExitStack() as opened:
            self.azure = opened.enter_context(contextlib.closing(Namespace()))
            self.node = opened.enter_context(contextlib.closing(Namespace()))
            self._connect_uplink()
            self.pods: list[Namespace] = []
            self.veths: list[str] = []
            for number in range(len(PODS)):
                self.pods.append(Namespace())
                self.veths.append("")
                self.plug(number)
            self._opened = opened.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for pod in self.pods:
            pod.close()
        self._opened.close()

    def _connect_uplink(self) -> None:
        self._veth(self.node, "eth0", self.azure, "tonode")
        self.node.run(
            f"ip addr add {NODE}/24 dev eth0; ip link set eth0 up; ip route add default via 192.168.77.1\n"
            "sysctl -qw net.ipv4.ip_forward=1"
        )
        self.azure.run(
            f"ip addr add {IMDS}/32 dev lo; ip addr add {WIRESERVER}/32 dev lo\n"
            "ip addr add 192.168.77.1/24 dev tonode; ip link set tonode up\n"
            f"ip route add 10.244.7.0/24 via {NODE}"
        )
        of_pods = f"ip saddr 10.244.0.0/16 ip daddr {IMDS}"
        rules = (f"{of_pods} counter", f"{of_pods} tcp flags & (syn | ack) == syn counter")
        table = Table("ip", "count", (Chain("prerouting", "filter", "prerouting", -300, rules),))
        self.azure.run(f"nft -f - <<END\n{render(table)}END")
        if self.kind == "bridge":
            self.node.run(f"ip link add cbr0 type bridge; ip addr add {BRIDGE}/24 dev cbr0; ip link set cbr0 up")

    def plug(self, number: int) -> None:
        """Connect pod `number`, which has no interface yet, under its address."""
        pod, address = self.pods[number], PODS[number]
        self._made += 1
        self.veths[number] = here = f"veth{number}" if self._made <= len(PODS) else f"veth{number}x{self._made}"
        self._veth(self.node, here, pod, "eth0")
        if self.kind == "bridge":
            self.node.run(f"ip link set {here} master cbr0 up")
            pod.run(f"ip addr add {address}/24 dev eth0; ip link set eth0 up; ip route add default via {BRIDGE}")
            return
        self.node.run(
            f"ip link set {here} up; ip route add {address}/32 dev {here}; sysctl -qw net.ipv4.conf.{here}.proxy_arp=1"
        )
        pod.run(
            f"ip addr add {address}/32 dev eth0; ip link set eth0 up\n"
            "ip route add 169.254.1.1 dev eth0 scope link; ip route add default via 169.254.1.1"
        )

    def replace_pod(self, number: int) -> None:
        """End pod `number` and give its address to a new one, as a network plugin does."""
        self.node.run(f"ip link del {self.veths[number]}")
        self.pods[number].close()
        self.pods[number] = Namespace()
        self.plug(number)

    @staticmethod
    def _veth(one: Namespace, name: str, other: Namespace, other_name: str) -> None:
        one.run(f"ip link add {name} type veth peer name {other_name} netns {other.path}")

    def leaked(self) -> int:
        """Count the packets of pods that arrived at the stand-in for IMDS since the last call."""
        return self._count()[0]

    def opened(self) -> int:
        """Count those among them that open a connection, likewise."""
        return self._count()[1]

    def _count(self) -> tuple[int, int]:
        listed = self.azure.run("nft list table ip count").split("packets ")
        before, self._counted = self._counted, (int(listed[1].split()[0]), int(listed[2].split()[0]))
        return self._counted[0] - before[0], self._counted[1] - before[1]
