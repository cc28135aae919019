"""A pod with every capability in its own namespace takes its neighbour's addresses, and gets nothing by it.

The first pod attacks, the second is the victim. An attack succeeds when an answer of NMI's arrives at the attacker.
"""

import contextlib
import json
import socket
from collections.abc import Iterator

import pytest

import make
from system.redirect.frames import (
    ARP,
    CUSTOMER_TAG,
    EVERYBODY,
    IPV4,
    SERVICE_TAG,
    arp_claim,
    frame,
    listening_in,
    send_frames,
    syn,
)
from system.redirect.network import BRIDGE, IMDS, NODE, PODS, Namespace, Network
from system.redirect.node import HEAD, RESOURCE, TARGET, Node, exchange
from waiting import until

ATTACKER, VICTIM = 0, 1
TAGS = ((), (CUSTOMER_TAG,), (SERVICE_TAG,), (CUSTOMER_TAG, CUSTOMER_TAG), (SERVICE_TAG, CUSTOMER_TAG))
COUNTING = f"""
table ip arrived
delete table ip arrived
table ip arrived {{
  chain prerouting {{
    type filter hook prerouting priority -290; policy accept;
    ip saddr {PODS[VICTIM]} ip daddr {IMDS} tcp flags & (fin | syn | rst | ack) == syn counter
  }}
}}
"""


@pytest.fixture(scope="module", params=["bridge", "routed"])
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A node with two pods, each with an identity of its own."""
    with Network(request.param) as network, Node(network, tmp_path_factory.mktemp("node")) as made:
        for number, name in enumerate(("attacker", "victim")):
            made.add_pod(number, name)
            made.assign(name, make.identity(name))
        yield made


@pytest.fixture
def node(shared: Node) -> Iterator[Node]:
    """The node with NMI as it is by default, and the attacker's interface as it was before and after."""
    if shared.process is None:
        shared.start()
    assert victim_is_served(shared)
    before = hardware(shared, ATTACKER)
    yield shared
    attacker = shared.network.pods[ATTACKER]
    attacker.run(f"ip link set eth0 address {before}; ip neigh flush all")
    for address in (PODS[VICTIM], BRIDGE, "8.8.8.8", NODE):
        attacker.run(f"ip addr del {address}/32 dev eth0 2>/dev/null || true")
    assert victim_is_served(shared)


def hardware(node: Node, number: int) -> str:
    """Return a pod's own hardware address."""
    return hardware_of(node.network.pods[number], "eth0")


def hardware_of(namespace: Namespace, interface: str) -> str:
    """Ask the kernel; what /sys shows is another namespace's."""
    address: str = json.loads(namespace.run(f"ip -j link show {interface}"))[0]["address"]
    return address


def victim_is_served(node: Node) -> bool:
    """Return the victim gets its own token; after an attack its first packets may have been lost."""
    until(lambda: asks_as(node, VICTIM, PODS[VICTIM]).startswith("token of victim "), "the victim is served", 30)
    return True


def asks_as(node: Node, number: int, source: str) -> str:
    """Ask as pod `number` from `source`: the token, or what came instead of an answer."""

    def act() -> str:
        try:
            with socket.create_connection((IMDS, 80), 1.5, source_address=(source, 0)) as connection:
                status, body = exchange(connection)
                return str(body.get("access_token", status))
        except OSError as error:
            return type(error).__name__

    return node.network.pods[number].call(act)


def take(node: Node, address: str, mac: str = "") -> str:
    """Let the attacker have an address as its own, tell everybody so, and ask from it."""
    pod = node.network.pods[ATTACKER]
    pod.run(f"ip addr add {address}/32 dev eth0")
    if mac:
        pod.run(f"ip link set eth0 address {mac}")
    mine = mac or hardware(node, ATTACKER)
    send_frames(pod, frame(EVERYBODY, mine, ARP, arp_claim(mine, address, BRIDGE)))
    return asks_as(node, ATTACKER, address)


@contextlib.contextmanager
def setting(node: Node, name: str, value: int) -> Iterator[None]:
    """Change a setting of the node's kernel for a while, where there is such a setting."""
    path = f"/proc/sys/net/{name}"
    before = node.network.node.run(f"cat {path} 2>/dev/null || true").strip()
    if before:
        node.network.node.run(f"echo {value} > {path}")
    yield
    if before:
        node.network.node.run(f"echo {before} > {path}")


@pytest.mark.parametrize("filtered", [0, 1])
@pytest.mark.parametrize("with_hardware", [False, True])
def test_a_pod_that_takes_its_neighbours_address_gets_no_answer(
    node: Node, filtered: int, *, with_hardware: bool
) -> None:
    """By ARP or with the hardware address too, with and without reverse path filter and bridge netfilter."""
    mac = hardware(node, VICTIM) if with_hardware else ""
    name = "bridge/bridge-nf-call-iptables" if node.network.kind == "bridge" else "ipv4/conf/all/rp_filter"
    with setting(node, name, filtered):
        assert take(node, PODS[VICTIM], mac) == "TimeoutError"


@pytest.mark.parametrize("address", [NODE, BRIDGE, "8.8.8.8"])
def test_addresses_of_no_pod_get_no_answer(node: Node, address: str) -> None:
    """The node's own address, the gateway's, and one from anywhere."""
    assert take(node, address) in {"TimeoutError", "ConnectionRefusedError", "OSError"}


@pytest.mark.parametrize("tags", TAGS)
def test_no_packet_in_a_neighbours_name_arrives(node: Node, tags: tuple[int, ...]) -> None:
    """Not even the first one, and no priority tag hides it; with the victim's hardware address neither.

    Its own connection of a moment ago may still be ending: only packets that begin one are counted.
    """
    node.network.node.run(f"nft -f - <<'END'{COUNTING}END")
    gateway = hardware_of(node.network.node, inner(node))
    for source in (hardware(node, ATTACKER), hardware(node, VICTIM)):
        packets = [frame(gateway, source, IPV4, syn(PODS[VICTIM], port), tags) for port in range(33000, 33010)]
        send_frames(node.network.pods[ATTACKER], *packets)
    assert " packets 0 " in node.network.node.run("nft list table ip arrived")
    node.network.node.run("nft delete table ip arrived")


def inner(node: Node) -> str:
    """Return the node's interface that the attacker's packets come in by."""
    return "cbr0" if node.network.kind == "bridge" else node.network.veths[ATTACKER]


@pytest.mark.parametrize("tags", TAGS)
def test_a_neighbours_answers_cannot_be_drawn_away(node: Node, tags: tuple[int, ...]) -> None:
    """Neither who has the victim's address nor behind which port its hardware address is can be changed by others.

    The attack comes between question and answer: any earlier, and the victim's own next packet undoes it.
    """
    pod, mine, its = node.network.pods[ATTACKER], hardware(node, ATTACKER), hardware(node, VICTIM)
    for number, (source, claim) in enumerate(((mine, PODS[VICTIM]), (its, PODS[ATTACKER]))):
        attack = frame(EVERYBODY, source, ARP, arp_claim(source, claim, BRIDGE), tags)
        resource = f"https://{number}-{len(tags)}-{sum(tags)}.example"
        with node.connect(VICTIM) as connection, listening_in(pod) as heard, node.slow_imds() as asked:
            connection.sendall(HEAD.format(target=TARGET.replace(RESOURCE, resource)).encode())
            until(asked, "NMI has asked IMDS")
            send_frames(pod, *[attack] * 5)
            until(lambda: heard, "the frames are on the wire")
            node.go_on()
            answer = b""
            while b"token of victim" not in answer:
                answer += connection.recv(65536)
        assert not any(b"token of victim" in one for one in heard)


def test_without_it_a_bridge_proves_nothing_and_readyz_says_so(node: Node) -> None:
    """The control: the same attack succeeds where nobody checks; routed, the kernel still does not bring the answer."""
    node.terminate()
    node.start("--anti-spoof=off")
    try:
        got = take(node, PODS[VICTIM], hardware(node, VICTIM))
        warned = "can take each other's addresses: --anti-spoof=off" in node.page("/readyz")[1]
        metric = "aadpodidentity_nmi_unproven_pods 2.0" in node.page("/metrics", 9090)[1]
        assert (got.startswith("token of victim "), warned, metric) == ((node.network.kind == "bridge"),) * 3
    finally:
        node.terminate()
        node.start()


def test_a_pod_whose_port_cannot_be_told_is_named(node: Node) -> None:
    """Two ports claim a new pod's address: it gets nothing, and `/readyz` says whose ports they are."""
    if node.network.kind == "routed":
        assert node.page("/readyz") == (200, "ok\n")
        return
    node.network.pods[ATTACKER].run("ip addr add 10.244.7.9/32 dev eth0")
    node.network.pods[VICTIM].run("ip addr add 10.244.7.9/32 dev eth0")
    node.add_pod(VICTIM, "third", address="10.244.7.9")
    until(lambda: "pod default/third at 10.244.7.9: no free port" in node.page("/readyz")[1], "a warning")
    assert "aadpodidentity_nmi_unproven_pods 1.0" in node.page("/metrics", 9090)[1]
    node.remove("/api/v1/namespaces/default/pods/third")
    until(lambda: node.page("/readyz") == (200, "ok\n"), "all is well again")
