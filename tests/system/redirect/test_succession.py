"""One NMI follows another, and NMI crashes, while pods ask all the time: none is refused, none is reset.

That no client waits is counted, not timed: a client sends a SYN again after a second when nobody answered it.
"""

import functools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

import make
from daemons.kube.scripted import Reply, Request
from podidentity.linux.passing import receive_sockets
from system.redirect.asking import asking
from system.redirect.network import NODE, Network
from system.redirect.node import Node, exchange
from system.redirect.test_daemon import ask_host
from waiting import until

CRASHES, CRASH_SECONDS = 3, 1.0
BUSY = 4  # times a start without a crash, which other programs slow down as well
CUT = {"ConnectionError('ended')", "ConnectionResetError(104, 'Connection reset by peer')"}
"""What becomes of the request that a killed process was answering, and of a connection that it kept."""


@pytest.fixture(params=["bridge", "routed"])
def node(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Node]:
    """A node with a pod that may have tokens, and no daemon yet."""
    with Network(request.param) as network, Node(network, tmp_path) as made:
        made.add_pod(0, "one")
        made.assign("one", make.identity("one"))
        yield made


@pytest.fixture
def routed(tmp_path: Path) -> Iterator[Node]:
    """The same for what does not depend on how pods hang on the node."""
    with Network("routed") as network, Node(network, tmp_path) as made:
        made.add_pod(0, "one")
        made.assign("one", make.identity("one"))
        yield made


def test_a_successor_takes_over_unnoticed(node: Node) -> None:
    """It serves beside its predecessor before that one is told to stop, three times over."""
    node.start()
    with asking(node.network.pods[0]) as clients:
        sent_again = repeated_syns(node)
        for _ in range(3):
            previous = succeed(node)
            for client in clients:
                client.wait_for_answers(20)
            terminate(previous)
            for client in clients:
                client.wait_for_answers(20)
        assert [set(client.counts) for client in clients] == [{"200"}, {"200"}], node.log()
        assert repeated_syns(node) == sent_again
    assert node.page("/readyz") == (200, "ok\n")
    assert "put right" not in node.log()  # neither repaired what the other did
    assert node.network.leaked() == 0


def test_a_successor_on_another_port_takes_over_unnoticed(routed: Node) -> None:
    """The queue of the old port is the predecessor's alone: it takes from it until it is empty."""
    routed.start()
    with asking(routed.network.pods[0]) as clients:
        previous = succeed(routed, "--nmi-port=2580")
        terminate(previous)
        for client in clients:
            client.wait_for_answers(20)
        assert [set(client.counts) for client in clients] == [{"200"}, {"200"}], routed.log()
    assert "dnat to 192.168.77.10:2580" in routed.network.node.run("nft list table ip podidentity")


def test_one_that_is_stopped_waits_for_a_successor_that_gets_ready(routed: Node) -> None:
    """Its pod is deleted before the successor knows who pods are: it goes on serving until that one does."""
    routed.start()
    with asking(routed.network.pods[0]) as clients:
        previous = routed.process
        assert previous is not None
        for _ in range(3):  # each of these is tried again after a pause
            routed.api.call(functools.partial(routed.api.served.answer_next, Reply.refusal(503), to=is_list_of_pods))
        routed.process = routed.spawn()
        until(lambda: connected(routed), "the successor has joined")
        terminate(previous)
        for client in clients:
            client.wait_for_answers(20)
        assert [set(client.counts) for client in clients] == [{"200"}, {"200"}], routed.log()
    assert "held back" not in routed.log()
    assert "podidentity_hold" not in routed.network.node.run("nft list tables")


def test_a_predecessor_serves_again_when_its_successor_dies(routed: Node) -> None:
    """Killed before the predecessor was told to stop: that one has been standing by, with the same queues."""
    routed.start()
    with asking(routed.network.pods[0]) as clients:
        previous = succeed(routed)
        routed.kill()
        routed.process = previous
        until(lambda: routed.page("/readyz") == (200, "ok\n"), "the predecessor serves again")
        for client in clients:
            client.wait_for_answers(20)
            assert set(client.counts) <= {"200"} | CUT, routed.log()
        clean = [dict(client.counts) for client in clients]
        terminate(succeed(routed))
        for client, counts in zip(clients, clean, strict=True):
            client.wait_for_answers(20)
            assert {what: count for what, count in client.counts.items() if what != "200"} == {
                what: count for what, count in counts.items() if what != "200"
            }
    assert routed.network.leaked() == 0


def test_a_successor_that_stops_gives_the_duty_back(routed: Node) -> None:
    """When an update is undone, the predecessor serves again, and no new connection is held back."""
    routed.start()
    with asking(routed.network.pods[0]) as clients:
        previous = succeed(routed)
        successor, routed.process = routed.process, previous
        assert successor is not None
        terminate(successor)
        for client in clients:
            client.wait_for_answers(20)
        assert [set(client.counts) for client in clients] == [{"200"}, {"200"}], routed.log()
    assert routed.page("/readyz") == (200, "ok\n")


def test_the_last_one_closes_off(routed: Node) -> None:
    """When an NMI stops without a successor, new connections are held back."""
    routed.start()
    terminate(succeed(routed))
    assert routed.terminate() == 0
    assert "podidentity_hold" in routed.network.node.run("nft list tables; nft list table ip podidentity")
    with pytest.raises(TimeoutError):
        routed.connect(0, 0.5)


def test_the_socket_for_host_tokens_is_there_all_the_time(routed: Node) -> None:
    """During a handover the socket for /host/token stays at its path and is answered all the time."""
    path = routed.directory / "sockets" / "host-token.sock"
    flag = f"--host-token-socket={path}"
    (routed.directory / "sockets").mkdir(mode=0o755)
    routed.start(flag)
    for _ in range(2):
        previous = succeed(routed, flag)
        assert ask_host(routed, path)[0] == 200
        terminate(previous)
        assert ask_host(routed, path)[0] == 200


def test_sockets_are_handed_to_root_alone(routed: Node) -> None:
    """Neither another user gets them, nor does NMI meet its successor where others may put a socket."""
    routed.start()
    directory = routed.directory / "sockets"
    until(lambda: list(directory.glob("nmi-*.sock")), "the socket is there")
    (path,) = directory.glob("nmi-*.sock")
    assert path.stat().st_mode & 0o777 == 0o600
    program = f"""import os, socket
os.setuid(65534)
socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET).connect({str(path)!r})
"""
    for folder in directory.parents[:3]:
        folder.chmod(folder.stat().st_mode | 0o011)  # so that nothing but the socket's own mode refuses
    refused = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert refused.stderr.splitlines()[-1] == "PermissionError: [Errno 13] Permission denied"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as root:
        root.connect(str(path))
        word, sockets = receive_sockets(root)
        assert word == "sockets"
        assert ("192.168.77.10", 2579) in [one.getsockname() for one in sockets]
        for one in sockets:
            one.close()
    directory.chmod(0o777)
    status, said = routed.run_once(
        f"--handover-socket={directory}/nmi.sock", "--http-probe-port=8086", "--prometheus-port=9091"
    )
    assert (status, said.splitlines()[-1]) == (
        3,
        f"error: {directory}: others than root may write here; give it to root with mode 0755",
    )
    assert routed.ask(0)[0] == 200


def test_a_crash_makes_clients_wait(node: Node) -> None:
    """SIGKILL of the process that serves: its supervisor keeps the sockets, and connections wait in their queues.

    The shortest of several waits counts: what else the machine does makes some of them longer.
    """
    begin = time.monotonic()
    node.start(supervised=True)
    start_seconds = time.monotonic() - begin
    process = node.process
    assert process is not None
    gaps = []
    with asking(node.network.pods[0]) as clients:
        for _ in range(CRASHES):
            daemon = child_of(process)
            for client in clients:
                client.look("forget")
            os.kill(daemon, signal.SIGKILL)
            until(functools.partial(is_another, process, daemon), "it is started again")
            for client in clients:
                client.wait_for_answers(20)
            gaps.append(max(client.look() for client in clients))
        for client in clients:
            assert set(client.counts) <= {"200"} | CUT, node.log()
            assert sum(count for what, count in client.counts.items() if what != "200") <= CRASHES  # one each time
    assert node.log().count("NMI crashed (signal 9) and was started again") == CRASHES
    assert min(gaps) <= max(CRASH_SECONDS, BUSY * start_seconds), (gaps, start_seconds)
    assert node.network.leaked() == 0


def test_a_crash_beside_a_successor_costs_nothing(routed: Node) -> None:
    """The predecessor is killed while it stands by, and started again: it succeeds the one that serves."""
    routed.start(supervised=True)
    with asking(routed.network.pods[0]) as clients:
        previous = succeed(routed)
        killed = child_of(previous)
        os.kill(killed, signal.SIGKILL)
        until(functools.partial(is_another, previous, killed), "it is started again")
        for client in clients:
            client.wait_for_answers(200)
        terminate(previous)
        for client in clients:
            client.wait_for_answers(20)
            assert set(client.counts) <= {"200"} | CUT, routed.log()
    assert routed.page("/readyz") == (200, "ok\n")
    assert routed.network.leaked() == 0


def test_the_token_file_door_of_an_ipv6_node_is_handed_over(routed: Node) -> None:
    """It is open at the node's IPv6 address and at its IPv4 address, and a successor takes both over."""
    routed.address, flags = "fd00:77::10", ("--broker=https://broker.invalid", "--token-file-port=2580")
    routed.network.node.run(f"ip -6 address add {routed.address}/128 dev lo")
    ask = functools.partial(routed.network.node.call, functools.partial(door_statuses, routed.address, NODE))
    routed.start(*flags)
    assert ask() == [401, 401]
    terminate(succeed(routed, *flags))
    assert ask() == [401, 401]
    assert "cannot listen" not in routed.log()


def test_an_ipv6_address_that_is_not_there_yet_is_waited_for(routed: Node) -> None:
    """NMI serves pods on IPv4 meanwhile, and opens the door when the node has the address."""
    routed.address, flags = "fd00:77::11", ("--broker=https://broker.invalid", "--token-file-port=2580")
    routed.start(*flags)
    assert "cannot listen on [fd00:77::11]:2580" in routed.log()
    assert routed.network.node.call(functools.partial(door_statuses, NODE)) == [401]
    routed.network.node.run(f"ip -6 address add {routed.address}/128 dev lo")

    def is_open() -> bool:
        try:
            statuses: list[int] = routed.network.node.call(functools.partial(door_statuses, routed.address))
        except ConnectionRefusedError:
            return False
        return statuses == [401]

    until(is_open, f"the door is open:\n{routed.log()}")


def door_statuses(*addresses: str) -> list[int]:
    """Ask without a proof at the token-file doors of these addresses."""
    statuses = []
    for address in addresses:
        with socket.create_connection((address, 2580), 30) as connection:
            target = f"/token-file/{UUID(int=1)}?api-version=2020-06-01&resource=r"
            statuses.append(exchange(connection, target)[0])
    return statuses


def succeed(node: Node, *flags: str) -> subprocess.Popen[bytes]:
    """Start another NMI, and wait until it has taken over; the one before it."""
    previous, successor = node.process, node.spawn(*flags)
    assert previous is not None
    node.process = successor
    until(lambda: node.is_started(successor), f"the successor serves:\n{node.log()}")
    return previous


def terminate(process: subprocess.Popen[bytes]) -> None:
    """Tell a process to stop, and wait for it."""
    process.send_signal(signal.SIGTERM)
    assert process.wait(25) == 0


def repeated_syns(node: Node) -> int:
    """Return how often the first pod's kernel has sent a SYN again because nobody answered it within a second."""
    names, numbers = node.network.pods[0].run("grep ^TcpExt: /proc/thread-self/net/netstat").splitlines()
    return int(dict(zip(names.split(), numbers.split(), strict=True))["TCPSynRetrans"])


def is_list_of_pods(request: Request) -> bool:
    """Whether it is the request without which nobody knows who pods are."""
    return request.path == "/api/v1/pods" and not request.is_watch


def connected(node: Node) -> bool:
    """Whether a successor is connected to the one that serves."""
    return str(node.directory / "sockets/nmi-") in node.network.node.run("ss -xHn state established")


def child_of(process: subprocess.Popen[bytes]) -> int:
    """Return the process that a supervisor runs; 0 while there is none."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return int(children[0]) if children else 0


def is_another(supervisor: subprocess.Popen[bytes], process: int) -> bool:
    """Whether the supervisor has started another process in place of this one."""
    return child_of(supervisor) not in {0, process}
