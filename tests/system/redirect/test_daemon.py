"""The real NMI on a node of namespaces: pods get their own tokens, nobody else's, and never the node's."""

import functools
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import make
from podidentity.core.identities import AssignedState
from podidentity.nmi.http import BACKLOG
from system.redirect.network import NODE, Network
from system.redirect.node import HEAD, RESOURCE, TARGET, Node, exchange, exchange_and_look, until
from system.redirect.traffic import hammering


@pytest.fixture(params=["bridge", "routed"])
def node(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Node]:
    """A node with everything but a running daemon."""
    with Network(request.param) as network, Node(network, tmp_path) as made:
        yield made


@pytest.fixture
def routed(tmp_path: Path) -> Iterator[Node]:
    """The same for what does not depend on how pods hang on the node."""
    with Network("routed") as network, Node(network, tmp_path) as made:
        yield made


def test_each_pod_gets_its_own_token(node: Node) -> None:
    """Two pods, two identities, one node: each gets its own token and is refused the other's."""
    for number, name in enumerate(("one", "two")):
        node.add_pod(number, name)
        node.assign(name, make.identity(name))
    node.start("--retry-attempts-for-created=0")
    tokens = [node.ask(number)[1]["access_token"] for number in (0, 1)]
    assert [token.split(" for ")[0] for token in tokens] == ["token of one", "token of two"]
    assert node.ask(0, f"/metadata/identity/oauth2/token?resource={RESOURCE}&client_id=client-of-two")[0] == 404
    assert node.network.leaked() == 0
    assert node.page("/healthz") == (200, "Active")


def test_a_pod_without_the_label_gets_nothing_at_once(routed: Node) -> None:
    """No label, no token: IMDS's own 400, so that SDKs go on with their chain."""
    routed.add_pod(0, "plain", selector="")
    routed.start()
    assert routed.ask(0) == (400, {"error": "invalid_request", "error_description": "Identity not found"})
    assert routed.imds.served.asked == []


HALF_OPEN = """
import resource, socket, struct, ctypes, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
nothing = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0))  # a filter that lets no answer in
held = []
for _ in range(1500):
    held.append(one := socket.socket())
    one.setblocking(False)
    one.setsockopt(socket.SOL_SOCKET, 26, struct.pack("HP", 1, ctypes.addressof(nothing)))  # SO_ATTACH_FILTER
    one.connect_ex(("169.254.169.254", 80))
sys.stdin.read()
"""


def test_half_open_connections_lock_nobody_out(node: Node) -> None:
    """A pod fills the listener's queue, and the kernel loses where others come in: they are answered, also later."""
    for number, name in enumerate(("one", "two")):
        node.add_pod(number, name)
        node.assign(name, make.identity(name))
    node.network.node.run("sysctl -qw net.ipv4.tcp_syncookies=1")
    node.start()
    until(lambda: "nmi_proven_pods 2" in node.page("/metrics", 9090)[1], "it is known where both come in")
    with node.network.pods[0].popen(sys.executable, "-c", HALF_OPEN, stdin=subprocess.PIPE):  # ends with its input
        until(lambda: _half_open(node) >= BACKLOG, "the queue is full", seconds=60)
        until(lambda: _served(node) and _cookies(node), "another pod comes in by a cookie", seconds=60)
    until(lambda: _half_open(node) < BACKLOG, "there is room again", seconds=90)
    seen = _cookies(node)
    assert _served(node)
    assert _cookies(node) == seen


def _served(node: Node) -> bool:
    """The second pod opens a connection and is answered, always."""
    assert node.ask(1)[0] == 200
    return True


def _half_open(node: Node) -> int:
    return len(node.network.node.run("ss -Htn state syn-recv").splitlines())


def _cookies(node: Node) -> int:
    """How many connections the node has accepted by a cookie."""
    names, numbers = node.network.node.run("grep ^TcpExt: /proc/thread-self/net/netstat").splitlines()
    return int(dict(zip(names.split(), numbers.split(), strict=True))["SyncookiesRecv"])


def test_a_direct_connection_is_refused(node: Node) -> None:
    """Whoever dials the node's port itself speaks for no pod."""
    node.add_pod(0, "one")
    node.assign("one", make.identity("one"))
    node.start()
    with pytest.raises(ConnectionError):
        node.network.pods[0].call(dial_directly)
    assert node.page("/metrics", 9090)[1].count("aadpodidentity_nmi_direct_connections_count 1.0") == 1


def reached(seen: "Counter[str]", enough: int) -> bool:
    """Say whether so many requests were answered."""
    return seen["kept"] > enough


def dial_directly() -> None:
    """Dial the daemon's own port from a pod."""
    with socket.create_connection((NODE, 2579), 5) as connection:
        exchange(connection)


def test_a_waiting_request_is_answered_when_the_identity_arrives(routed: Node) -> None:
    """A pod that asks before MIC is done is answered by the watch, not by a poll."""
    routed.add_pod(0, "one")
    routed.start()
    with routed.connect(0) as connection:
        answers = []
        thread = threading.Thread(target=lambda: answers.append(exchange(connection)), daemon=True)
        thread.start()
        until(lambda: "aadpodidentity_nmi_waiting_requests 1.0" in routed.page("/metrics", 9090)[1], "one waits")
        routed.assign("one", make.identity("one"), AssignedState.CREATED)
        routed.assign("one", make.identity("one"), AssignedState.ASSIGNED)
        thread.join(10)
    assert answers[0][0] == 200


def test_nothing_leaks_while_the_daemon_is_killed_and_restarted(node: Node) -> None:
    """SIGKILL under load, twice: pods are refused meanwhile and served afterwards."""
    node.add_pod(0, "one")
    node.assign("one", make.identity("one"))
    node.start()
    with hammering(node.network.pods):
        for _ in range(2):
            node.kill()
            node.start()
    assert node.ask(0)[0] == 200
    assert node.network.leaked() == 0


def test_an_update_refuses_and_resets_nobody(node: Node) -> None:
    """SIGTERM, a pause, the next one, twice: clients that ask all the time see no error at all.

    Some open a connection for each request; some keep theirs until an answer says that it was the last.
    """
    node.add_pod(0, "one")
    node.assign("one", make.identity("one"))
    node.start()
    seen: Counter[str] = Counter()
    stop = threading.Event()

    def client(*, keep: bool) -> None:
        while not stop.is_set():
            try:
                with node.connect(0, 20) as connection:
                    ended = False
                    while not ended and not stop.is_set():
                        status, _, last = exchange_and_look(connection)
                        seen[f"{status}"] += 1
                        seen["kept"] += keep
                        ended = last or not keep
            except OSError as error:
                seen[f"{error!r}, kept: {keep}"] += 1

    threads = [threading.Thread(target=client, kwargs={"keep": number % 2 == 0}, daemon=True) for number in range(6)]
    for thread in threads:
        thread.start()
    until(lambda: seen["kept"] > 50, "clients are served")
    for _ in range(2):
        assert node.terminate() == 0, node.log()
        node.start()
        enough = seen["kept"] + 50
        until(functools.partial(reached, seen, enough), "clients are served again")
    stop.set()
    for thread in threads:
        thread.join(20)
    assert set(seen) == {"200", "kept"}
    assert node.network.leaked() == 0


def test_what_is_in_flight_is_finished(routed: Node) -> None:
    """A request whose token is still being fetched when SIGTERM comes gets its answer; new ones wait meanwhile."""
    routed.add_pod(0, "one")
    routed.assign("one", make.identity("one"))
    routed.start()
    with routed.connect(0, 20) as connection, routed.slow_imds() as asked:
        connection.sendall(HEAD.format(target=TARGET).encode())
        until(asked, "NMI has asked IMDS")
        assert routed.process is not None
        routed.process.send_signal(signal.SIGTERM)
        held = "podidentity_hold"
        until(lambda: held in routed.network.node.run("nft list tables"), "new connections are held back")
        routed.go_on()
        assert b"token of one" in connection.recv(65536)
    assert routed.terminate() == 0
    assert held in routed.network.node.run("nft list tables; nft list table ip podidentity")


def test_a_second_nmi_says_so_and_harms_nobody(routed: Node) -> None:
    """A port that is taken is one sentence; the first one goes on serving."""
    routed.add_pod(0, "one")
    routed.assign("one", make.identity("one"))
    routed.start()
    status, said = routed.run_once("--http-probe-port=8086", "--prometheus-port=9091")
    assert status == 3
    assert said.splitlines()[-1].endswith(
        f"Cannot listen on {NODE}:2579: Address already in use. Is another NMI running on this node?"
    )
    assert "Traceback" not in said
    assert routed.ask(0)[0] == 200
    assert routed.page("/readyz") == (200, "ok\n")
