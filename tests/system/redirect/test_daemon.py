"""The real NMI on a node of namespaces: pods get their own tokens, nobody else's, and never the node's."""

import functools
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import make
from podidentity.core.identities import AssignedState
from system.redirect.network import NODE, Network
from system.redirect.node import RESOURCE, Node, exchange, until
from system.redirect.traffic import hammering


@pytest.fixture(params=["bridge", "routed"])
def node(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Node]:
    """A node with everything but a running daemon."""
    with Network(request.param) as network, Node(network, tmp_path) as made:
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


def test_a_pod_without_the_label_gets_nothing_at_once(node: Node) -> None:
    """No label, no token: IMDS's own 400, so that SDKs go on with their chain."""
    node.add_pod(0, "plain", selector="")
    node.start()
    assert node.ask(0) == (400, {"error": "invalid_request", "error_description": "Identity not found"})
    assert node.imds.served.asked == []


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
    return seen["200"] > enough


def refused(node: Node) -> str:
    """Ask as the first pod: the status, or the name of the error."""
    try:
        with node.connect(0, 2.0) as connection:
            return str(exchange(connection)[0])
    except OSError as error:
        return type(error).__name__


def dial_directly() -> None:
    """Dial the daemon's own port from a pod."""
    with socket.create_connection((NODE, 2579), 5) as connection:
        exchange(connection)


def test_a_waiting_request_is_answered_when_the_identity_arrives(node: Node) -> None:
    """A pod that asks before MIC is done is answered by the watch, not by a poll."""
    node.add_pod(0, "one")
    node.start()
    with node.connect(0) as connection:
        answers = []
        thread = threading.Thread(target=lambda: answers.append(exchange(connection)), daemon=True)
        thread.start()
        until(lambda: "aadpodidentity_nmi_waiting_requests 1.0" in node.page("/metrics", 9090)[1], "one waits")
        node.assign("one", make.identity("one"), AssignedState.CREATED)
        node.assign("one", make.identity("one"), AssignedState.ASSIGNED)
        thread.join(10)
    assert answers[0][0] == 200


def test_connections_are_reset_with_their_pod(node: Node) -> None:
    """A deleted pod's kept-alive connection ends: its address may be another's in a moment."""
    node.add_pod(0, "one")
    node.assign("one", make.identity("one"))
    node.start()
    with node.connect(0) as connection:
        assert exchange(connection)[0] == 200
        node.remove("/api/v1/namespaces/default/pods/one")
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
    assert node.ask(0)[0] == 404


def test_a_reused_address_gets_nothing_of_the_old_pod(node: Node) -> None:
    """An address moves to another pod before the API says so: 503 until it does, then that pod's own token."""
    node.add_pod(0, "old")
    node.assign("old", make.identity("old"))
    node.start()
    assert node.ask(0)[1]["access_token"].startswith("token of old ")
    node.network.replace_pod(0)
    assert refused(node) in {"503", "TimeoutError"}
    node.remove("/api/v1/namespaces/default/pods/old")
    node.add_pod(0, "new")
    node.assign("new", make.identity("new"))
    until(lambda: refused(node) == "200", "the new pod is known")
    assert node.ask(0)[1]["access_token"].startswith("token of new ")
    assert node.network.leaked() == 0


def test_nothing_leaks_while_the_daemon_is_killed_and_restarted(node: Node) -> None:
    """SIGKILL under load, three times: pods are refused meanwhile and served afterwards."""
    node.add_pod(0, "one")
    node.assign("one", make.identity("one"))
    node.start()
    with hammering(node.network.pods):
        for _ in range(3):
            node.kill()
            node.start()
    assert node.ask(0)[0] == 200
    assert node.network.leaked() == 0


def test_an_update_refuses_and_resets_nobody(node: Node) -> None:
    """SIGTERM, a pause, the next one: a pod that opens one connection after the other sees no error at all."""
    node.add_pod(0, "one")
    node.assign("one", make.identity("one"))
    node.start()
    seen: Counter[str] = Counter()
    stop = threading.Event()

    def client() -> None:
        while not stop.is_set():
            try:
                seen[str(node.ask(0)[0])] += 1
            except OSError as error:
                seen[type(error).__name__] += 1

    threads = [threading.Thread(target=client, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    until(lambda: seen["200"] > 50, "clients are served")
    for _ in range(2):
        assert node.terminate() == 0, node.log()
        node.start()
        enough = seen["200"] + 50
        until(functools.partial(reached, seen, enough), "clients are served again")
    stop.set()
    for thread in threads:
        thread.join(10)
    assert set(seen) == {"200"}
    assert node.network.leaked() == 0
