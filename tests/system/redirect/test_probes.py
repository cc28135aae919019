"""The probe and metrics ports under the real NMI: kubelets are answered whatever pods do, and pods are told little."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import make
from podidentity.linux.reuseport import listen_apart
from podidentity.nmi.tcp_info import has_unaccepted
from system.redirect.network import NODE, Network
from system.redirect.node import Node
from waiting import until

PORTS = (8085, 9090)
FLOOD = """
import asyncio, contextlib, sys
async def hold(port):
    while True:
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection(sys.argv[1], port)
            await reader.read()
            writer.close()
async def main():
    holders = [asyncio.ensure_future(hold(port)) for port in (8085, 9090) for _ in range(150)]
    print("under way", flush=True)
    await asyncio.gather(*holders)
asyncio.run(main())
"""


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """A node whose NMI answers one pod."""
    with Network("routed") as network, Node(network, tmp_path) as made:
        made.add_pod(0, "one")
        made.assign("one", make.identity("one"))
        made.start()
        yield made


def fetch(path: str, port: int) -> tuple[int, str]:
    """Ask at the node's address as a kubelet does, with its patience of a second."""
    with socket.create_connection((NODE, port), 1) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        received = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = received.partition(b"\r\n\r\n")
    return int(head.split(b" ")[1]), body.decode()


def test_the_kubelet_is_answered_whatever_pods_do(node: Node) -> None:
    """A pod holds and reopens 300 connections: no probe fails, at the node's address or on loopback."""
    with node.network.pods[0].popen(sys.executable, "-c", FLOOD, NODE, stdout=subprocess.PIPE) as flood:
        assert flood.stdout is not None
        assert flood.stdout.readline() == b"under way\n"
        for _ in range(50):
            assert node.page("/healthz") == node.network.node.call(lambda: fetch("/healthz", 8085)) == (200, "Active")
            assert node.page("/metrics", 9090)[0] == node.network.node.call(lambda: fetch("/metrics", 9090))[0] == 200
        flood.kill()


def test_another_address_is_answered_beside_one_that_floods(node: Node) -> None:
    """Prometheus is a pod: one other pod does not keep it from its page."""
    with node.network.pods[0].popen(sys.executable, "-c", FLOOD, NODE, stdout=subprocess.PIPE) as flood:
        assert flood.stdout is not None
        assert flood.stdout.readline() == b"under way\n"
        for _ in range(20):
            assert node.network.pods[1].call(lambda: fetch("/metrics", 9090))[0] == 200
        flood.kill()


def test_pods_are_told_little(node: Node) -> None:
    """Pages for pods have no names of pods, namespaces or resources; pages for programs of the node have them."""
    assert node.ask(0)[0] == 200
    own = node.network.node.call(lambda: fetch("/metrics", 9090))[1]
    assert 'namespace="default",operation_type' in own
    status, page = node.network.pods[0].call(lambda: fetch("/metrics", 9090))
    assert status == 200
    assert 'namespace="",operation_type="/metadata/identity/oauth2/token",resource="",status_code="200"' in page
    assert "default" not in page
    assert node.network.pods[0].call(lambda: fetch("/readyz", 8085)) == (200, "ok\n")
    assert node.network.pods[0].call(lambda: fetch("/healthz", 8085)) == (200, "Active")


def test_metrics_may_be_for_all(tmp_path: Path) -> None:
    """With --metrics-details=all every client's metrics have namespaces and resources."""
    with Network("routed") as network, Node(network, tmp_path) as node:
        node.add_pod(0, "one")
        node.assign("one", make.identity("one"))
        node.start("--metrics-details=all")
        assert node.ask(0)[0] == 200
        page = network.pods[0].call(lambda: fetch("/metrics", 9090))[1]
        assert 'namespace="default",operation_type' in page


@pytest.mark.parametrize("address", [NODE, "127.0.0.1"])
def test_a_full_queue_of_strangers_is_not_the_kubelets(address: str) -> None:
    """Nobody accepts, and a pod has filled its queue: this host's connections and its neighbour's come in by others."""
    with Network("routed") as network:
        own, *others = network.node.call(lambda: listen_apart(socket.AF_INET, "0.0.0.0", 8085, 4, strangers=2))
        strangers: list[socket.socket] = []

        def fill() -> bool:
            """Connect once more; whether the queue has taken some and takes no more."""
            made = socket.socket()
            made.settimeout(0.5)
            if made.connect_ex((NODE, 8085)) == 0:
                strangers.append(made)
                return False
            made.close()
            return len(strangers) > 4

        until(lambda: network.pods[0].call(fill), "its queue to be full")
        (full,) = filter(has_unaccepted, others)
        network.pods[1].call(lambda: socket.create_connection((NODE, 8085), 1)).close()
        with network.node.call(lambda: socket.create_connection((address, 8085), 1)) as probe:
            own.setblocking(True)
            own.settimeout(5)
            with own.accept()[0] as accepted:
                assert accepted.getpeername() == probe.getsockname()
        with full.accept()[0] as stranger:
            assert stranger.getpeername()[0] != stranger.getsockname()[0]
        for one in (*strangers, own, *others):
            one.close()


def test_a_port_that_somebody_has_is_refused() -> None:
    """The two sockets of one daemon share the port; a port that another daemon holds is refused."""
    with Network("routed") as network:
        sockets = network.node.call(lambda: listen_apart(socket.AF_INET, "0.0.0.0", 8085, 4))
        with pytest.raises(OSError, match="in use"):
            network.node.call(lambda: listen_apart(socket.AF_INET, "0.0.0.0", 8085, 4))
        for one in sockets:
            one.close()
