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
from typing import Any

import pytest

import make
from podidentity.core.model.identities import AssignedState
from podidentity.nmi.doors import BACKLOG
from system.redirect.asking import asking
from system.redirect.network import NODE, Network
from system.redirect.node import HEAD, RESOURCE, TARGET, Node, exchange, exchange_and_look
from system.redirect.traffic import hammering
from waiting import until


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
    """A pod without the label gets IMDS's own 400, so that SDKs try the next credential of their chain."""
    routed.add_pod(0, "plain", selector="")
    routed.start()
    assert routed.ask(0) == (400, {"error": "invalid_request", "error_description": "Identity not found"})
    assert routed.imds.served.requests == []


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
    """A pod fills its queue of the listener, and no other's; where the kernel loses the way in, who asks is answered.

    Pods that share a queue by their addresses come in by cookies then: as all do when the kernel is told to.
    """
    for number, name in enumerate(("one", "two")):
        node.add_pod(number, name)
        node.assign(name, make.identity(name))
    node.network.node.run("sysctl -qw net.ipv4.tcp_syncookies=1")
    node.start()
    until(lambda: "nmi_proven_pods 2" in node.page("/metrics", 9090)[1], "it is known where both come in")
    with node.network.pods[0].popen(sys.executable, "-c", HALF_OPEN, stdin=subprocess.PIPE):  # ends with its input
        until(lambda: _half_open(node) >= BACKLOG, "the queue is full", seconds=60)
        assert _served(node)
        assert _cookies(node) == 0
        node.network.node.run("sysctl -qw net.ipv4.tcp_syncookies=2")
        until(lambda: _served(node) and _cookies(node), "another pod comes in by a cookie", seconds=60)
    node.network.node.run("sysctl -qw net.ipv4.tcp_syncookies=1")
    until(lambda: _half_open(node) < BACKLOG, "there is room again", seconds=90)
    seen = _cookies(node)
    assert _served(node)
    assert _cookies(node) == seen


def _served(node: Node) -> bool:
    """Return the second pod opens a connection and is answered, always."""
    assert node.ask(1)[0] == 200
    return True


def _half_open(node: Node) -> int:
    return len(node.network.node.run("ss -Htn state syn-recv").splitlines())


def _cookies(node: Node) -> int:
    """Return how many connections the node has accepted by a cookie."""
    names, numbers = node.network.node.run("grep ^TcpExt: /proc/thread-self/net/netstat").splitlines()
    return int(dict(zip(names.split(), numbers.split(), strict=True))["SyncookiesRecv"])


def test_a_direct_connection_is_refused(node: Node) -> None:
    """A pod that connects to NMI's own port, not to the metadata address, is cut off and counted."""
    node.add_pod(0, "one")
    node.assign("one", make.identity("one"))
    node.start()
    with pytest.raises(ConnectionError):
        node.network.pods[0].call(dial_directly)
    assert node.page("/metrics", 9090)[1].count("aadpodidentity_nmi_direct_connections_count 1.0") == 1


def reached(seen: "Counter[str]", enough: int) -> bool:
    """Return whether so many requests have been answered."""
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


def test_the_socket_closes_the_door_on_loopback(routed: Node, tmp_path: Path) -> None:
    """With a place for its socket NMI gives pods' tokens there alone; on a flag also where the CSI driver asks."""
    path = tmp_path / "host-token" / "host-token.sock"
    flag = f"--host-token-socket={path}"
    routed.add_pod(0, "one")
    routed.assign("one", make.identity("one"))
    routed.start(flag)
    assert (ask_host(routed, None)[0], path.exists()) == (200, False)
    routed.kill()
    path.parent.mkdir(mode=0o755)
    for loopback, words in ((404, ()), (200, ("--host-token-loopback=on",))):
        routed.start(flag, *words)
        status, body = ask_host(routed, path)
        assert (status, body["token"]["access_token"].split(" for ")[0]) == (200, "token of one")
        assert ask_host(routed, None)[0] == loopback
        routed.kill()


def ask_host(node: Node, path: Path | None) -> tuple[int, dict[str, Any]]:
    """Ask as a root program of the node, on the socket or on loopback."""

    def ask() -> tuple[int, dict[str, Any]]:
        with socket.socket(socket.AF_UNIX) if path else socket.socket() as connection:
            connection.settimeout(10)
            connection.connect(str(path) if path else ("127.0.0.1", 2579))
            return exchange(
                connection, f"/host/token?resource={RESOURCE} HTTP/1.1\r\npodname: one\r\npodns: default\r\nx:"
            )

    return node.network.node.call(ask)


def test_an_nmi_that_hands_nothing_over_is_waited_for(routed: Node) -> None:
    """A release of before has the ports: its successor says so, is prepared, and serves as soon as they are free."""
    routed.add_pod(0, "one")
    routed.assign("one", make.identity("one"))
    routed.start("--handover-socket=")
    previous, successor = routed.process, routed.spawn("--handover-socket=")
    until(lambda: routed.is_started(successor), f"the successor is prepared:\n{routed.log()}")
    assert f"cannot listen on {NODE}:2579: Address already in use" in routed.log()
    assert "waiting until the other NMI of this node ends" in routed.log()
    with asking(routed.network.pods[0]) as clients:
        assert previous is not None
        previous.terminate()
        assert previous.wait(15) == 0
        for client in clients:
            client.wait_for_answers(20)
        assert [set(client.counts) for client in clients] == [{"200"}, {"200"}], routed.log()
    until(lambda: routed.page("/readyz") == (200, "ok\n"), "probes are answered")
    assert routed.page("/metrics", 9090)[0] == 200
    assert routed.network.leaked() == 0


def test_a_port_of_another_program_makes_it_not_ready(routed: Node) -> None:
    """Whatever has the port, NMI does not pretend to serve; it says on its probe port what is missing."""
    with routed.network.node.listen(NODE, 2579):
        process = routed.spawn()
        until(lambda: routed.is_started(process), "it is prepared")
        status, said = routed.page("/readyz")
        assert (status, said.splitlines()[0]) == (503, "the redirect has not been put up yet")


def test_a_probe_port_of_another_program_is_one_sentence(routed: Node) -> None:
    """Without another NMI there is nobody to wait for."""
    with routed.network.node.listen(NODE, 9090):
        status, said = routed.run_once("--http-probe-port=8086")
    assert (status, said.splitlines()[-1]) == (
        3,
        "error: port 9090 cannot be listened on: Address already in use; give this daemon another port",
    )
