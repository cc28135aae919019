"""The real NMI on a node without Azure's metadata service: its pods' tokens come from the broker alone."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import make
from daemons.broker import harness as brokers
from system.redirect.background import Background
from system.redirect.network import IMDS, Network
from system.redirect.node import TARGET, Node

NMI = "podidentity/nmi"


@contextlib.contextmanager
def broker_on(network: Network, directory: Path) -> Iterator[tuple[brokers.Broker, tuple[str, ...]]]:
    """Serve a broker on the node that takes the word of its NMI; also return the flags that lead NMI there."""
    with Background(network.node, lambda: brokers.serving(node_daemons=frozenset({NMI}))) as background:
        broker = background.served
        token = broker.cluster.token(NMI, "nmi-1")
        broker.cluster.tokens[token]["user"]["extra"]["authentication.kubernetes.io/node-name"] = ["n1"]
        (directory / "token").write_text(token)
        (directory / "ca.crt").write_bytes(broker.ca_pem)
        files = (f"--broker-ca={directory}/ca.crt", f"--broker-token={directory}/token")
        yield broker, (f"--broker=https://localhost:{broker.port}", *files)


def test_a_pod_gets_its_token_where_nobody_has_the_metadata_address(tmp_path: Path) -> None:
    """NMI starts, is ready and healthy, and gives the broker's token."""
    with Network("routed") as network, Node(network, tmp_path) as node, broker_on(network, tmp_path) as (broker, flags):
        network.azure.run(f"ip addr del {IMDS}/32 dev lo; ip route add blackhole {IMDS}/32")
        pod = node.add_pod(0, "web")
        node.assign("web", make.identity(type=3, client_id=brokers.READER))
        broker.cluster.add_pod(str(pod.key), "cart", "n1", uid=pod.uid)
        broker.cluster.grant("default/cart")
        node.start(*flags)
        status, document = node.ask(0, TARGET)
        assert (status, document.get("access_token")) == (200, f"{brokers.READER} {brokers.SCOPE} no 1"), document
        assert node.page("/healthz") == (200, "Active")
        assert node.page("/readyz")[0] == 200
        assert node.imds.served.requests == []
        assert network.leaked() == 0
