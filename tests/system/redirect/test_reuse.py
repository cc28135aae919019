"""Addresses are used again before the API server says so, and the next pod there never gets the last one's token.

One node with one daemon serves all tests; each test has pods of its own names.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import make
from system.redirect.frames import listening_in
from system.redirect.network import BRIDGE, PODS, Network
from system.redirect.node import HEAD, TARGET, Node, exchange
from waiting import until

POD = "/api/v1/namespaces/default/pods/"
NOT_ANSWERED = {"503", "404", "TimeoutError", "ConnectionResetError"}


@pytest.fixture(scope="module", params=["bridge", "routed"])
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A node with NMI running."""
    with Network(request.param) as network, Node(network, tmp_path_factory.mktemp("node")) as made:
        made.start("--retry-attempts-for-created=0", "--retry-attempts-for-assigned=0")
        yield made


@pytest.fixture
def node(shared: Node) -> Iterator[Node]:
    """The node without pods, before and after."""
    shared.network.leaked()
    yield shared
    for path in [path for path in shared.api.served.objects if path.startswith(POD)]:
        shared.remove(path)
    until(lambda: knows(shared, 0), "NMI knows that all are gone")
    assert shared.network.leaked() == 0


def outcome(node: Node, number: int = 0) -> str:
    """Ask as a pod: the token, the status, or the name of the error."""
    try:
        with node.connect(number, 1.2) as connection:
            status, body = exchange(connection)
            return str(body.get("access_token", status))
    except OSError as error:
        return type(error).__name__


def start(node: Node, name: str, *, asks: bool = True) -> None:
    """Let a pod be there and, unless told otherwise, get its token."""
    node.add_pod(0, name)
    node.assign(name, make.identity(name))
    if asks:
        until(lambda: outcome(node).startswith(f"token of {name} "), f"{name} is served")
    else:
        until(lambda: knows(node), f"NMI knows where {name} is")


def knows(node: Node, pods: int = 1) -> bool:
    """Whether NMI knows by which interface or port so many pods ask."""
    return f"aadpodidentity_nmi_proven_pods {pods}.0" in node.page("/metrics", 9090)[1]


@pytest.mark.parametrize("asked_before", [True, False])
def test_the_next_pod_at_an_address_never_gets_the_last_ones_token(node: Node, *, asked_before: bool) -> None:
    """Refused while the API server still has the old pod, then its own: also when the old one never asked."""
    old, new = f"old{asked_before}".lower(), f"new{asked_before}".lower()
    start(node, old, asks=asked_before)
    node.network.replace_pod(0)
    deadline = time.monotonic() + 2
    answers = {outcome(node)}
    while time.monotonic() < deadline:
        answers.add(outcome(node))
    assert answers <= NOT_ANSWERED
    node.remove(POD + old)
    start(node, new)


def test_an_answer_under_way_is_not_delivered_to_the_next_pod(node: Node) -> None:
    """The connection is reset with the interface: nothing is sent, and sent again, to whoever has the address next."""
    start(node, "leaving", asks=False)
    with node.connect(0) as connection, node.slow_imds() as asked:
        connection.sendall(HEAD.format(target=TARGET).encode())
        until(asked, "NMI has asked IMDS")
        node.network.replace_pod(0)
        with listening_in(node.network.pods[0]) as heard:
            until(lambda: "nmi_connections 0.0" in node.page("/metrics", 9090)[1], "the connection is reset")
            node.go_on()
            outcome(node)  # a whole exchange, so that whatever was to come has come
    assert not any(b"token of leaving" in one for one in heard)


def test_a_deleted_pods_connection_is_reset(node: Node) -> None:
    """A deleted pod's connection is reset even while its network interface still exists."""
    start(node, "deleted")
    with node.connect(0) as connection:
        assert exchange(connection)[0] == 200
        node.remove(POD + "deleted")
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
    assert outcome(node) in NOT_ANSWERED


def test_a_recreated_pod_of_the_same_name_does_not_inherit(node: Node) -> None:
    """StatefulSets use names again: what MIC assigned to the last web-0 is not for one with another label."""
    start(node, "web-0")
    node.network.replace_pod(0)
    node.remove(POD + "web-0")
    until(lambda: knows(node, 0), "NMI knows that it is gone")
    node.add_pod(0, "web-0", selector="other", uid="uid-of-the-next")
    until(lambda: outcome(node) == "404", "the new pod is known")
    assert outcome(node) == "404"


def test_two_pods_that_claim_one_address_get_nothing(node: Node) -> None:
    """While two pods claim one address it is not known which of them asks, so neither gets a token."""
    start(node, "first")
    node.add_pod(0, "second")
    until(lambda: outcome(node) == "503", "both are known")
    node.remove(POD + "second")
    until(lambda: outcome(node).startswith("token of first "), "one is left")


def test_a_restart_lets_no_pod_change_places(tmp_path: Path) -> None:
    """While NMI is away a pod dies, and its neighbour puts on the dead one's address: not believed."""
    with Network("bridge") as network, Node(network, tmp_path) as node:
        for number, name in enumerate(("heir", "dead")):
            node.add_pod(number, name)
            node.assign(name, make.identity(name))
        node.start("--retry-attempts-for-created=0")
        until(lambda: knows(node, 2), "NMI knows where both are")
        node.terminate()
        network.node.run(f"ip link del {network.veths[1]}")
        network.pods[0].run(
            f"ip addr del {PODS[0]}/24 dev eth0; ip addr add {PODS[1]}/24 dev eth0; ip route add default via {BRIDGE}"
        )
        node.start("--retry-attempts-for-created=0")
        assert outcome(node) in NOT_ANSWERED
        assert "pod default/dead at 10.244.7.3: no free port" in node.page("/readyz")[1]
        assert not any("dead" in asked.target for asked in node.imds.served.requests)
