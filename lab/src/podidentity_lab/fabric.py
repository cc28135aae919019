"""The lab's network: which addresses there are, and the commands that make them real.

The namespace that the lab's own process lives in is the *fabric*: it stands between the nodes, Azure and the real
metadata service. Every node is a namespace behind a routed veth, its uplink; the rules for
Services are in `services`.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass

from podidentity.linux.commands import run
from podidentity_lab.linux.namespaces import ip_batch, write_sysctl

FABRIC_ADDRESS = "192.168.50.1"
AZURE_ADDRESS = "192.168.60.4"
AZURE_NAMESPACE = "azure"
METADATA_ADDRESS = "169.254.169.254"
POD_NETWORK = "10.244.0.0/16"
SERVICE_NETWORK = "10.96.0.0/16"
LOAD_BALANCER_NETWORK = "10.98.0.0/24"
NETWORKS = (POD_NETWORK, SERVICE_NETWORK, LOAD_BALANCER_NETWORK, "192.168.50.0/24", "192.168.60.0/24")
"""All that is reachable in the lab; the gateway lets through nothing else."""

_AZURE_GATEWAY = "192.168.60.1"
OWN_ADDRESSES = (FABRIC_ADDRESS, _AZURE_GATEWAY)
"""The source addresses of the lab's own process, which makes connections for programs of the host."""

BRIDGE = "cbr0"
MOST_NODES = 100  # 192.168.50.10 ... 109

_COUNTERS = "lab_counters"


@dataclass(frozen=True, slots=True)
class NodeNetwork:
    """The addresses of node number `index`, counted from 0. `name` is its network namespace, too."""

    name: str
    index: int

    @property
    def address(self) -> str:
        """The node's own address."""
        return f"192.168.50.{10 + self.index}"

    @property
    def pods(self) -> str:
        """The network of the node's pods."""
        return f"10.244.{self.index}.0/24"

    @property
    def bridge_address(self) -> str:
        """The node's address on its bridge, which is its pods' gateway."""
        return f"10.244.{self.index}.1"

    @property
    def uplink(self) -> str:
        """The fabric's end of the node's link. What arrives here comes from this node."""
        return f"up-{self.name}"


async def build(nodes: Iterable[NodeNetwork], *, bridge: bool, metadata: bool) -> None:
    """Make the fabric, Azure's namespace and the nodes' namespaces. Raises `HostError`.

    Without `metadata` there is no way to the metadata service's address, as in clusters that are not on Azure.
    """
    node_plans = tuple(nodes)
    await ip_batch(_fabric_lines(node_plans, metadata=metadata))
    write_sysctl("", "net/ipv4/ip_forward", "1")
    await ip_batch(_azure_lines(), AZURE_NAMESPACE)
    for node in node_plans:
        await ip_batch(_node_lines(node, bridge=bridge), node.name)
        write_sysctl(node.name, "net/ipv4/ip_forward", "1")
    await run("nft", "-f", "-", text=_counter_rules(node_plans))


async def metadata_packets() -> dict[str, int]:
    """Return how many packets of pods each node let through to the metadata service, by node."""
    answer = json.loads(await run("nft", "-j", "list", "counters", "table", "ip", _COUNTERS))
    counters = (item["counter"] for item in answer["nftables"] if "counter" in item)
    return {counter["name"].removeprefix("imds_"): counter["packets"] for counter in counters}


def _fabric_lines(nodes: tuple[NodeNetwork, ...], *, metadata: bool) -> list[str]:
    lines = [
        "link set lo up",
        *([f"addr add {METADATA_ADDRESS}/32 dev lo"] if metadata else []),
        f"netns add {AZURE_NAMESPACE}",
        f"link add up-azure type veth peer name eth0 netns {AZURE_NAMESPACE}",
        f"addr add {_AZURE_GATEWAY}/24 dev up-azure",
        "link set up-azure up",
    ]
    for node in nodes:
        lines += [
            f"netns add {node.name}",
            f"link add {node.uplink} type veth peer name eth0 netns {node.name}",
            f"addr add {FABRIC_ADDRESS}/32 dev {node.uplink}",
            f"link set {node.uplink} up",
            f"route add {node.address}/32 dev {node.uplink} src {FABRIC_ADDRESS}",
            f"route add {node.pods} via {node.address} dev {node.uplink} src {FABRIC_ADDRESS} onlink",
        ]
    # Routes only so that the fabric's own connections get as far as the output hook, where `services` sends them on.
    for network in (SERVICE_NETWORK, LOAD_BALANCER_NETWORK):
        lines.append(f"route add {network} dev lo src {FABRIC_ADDRESS}")
    return lines


def _azure_lines() -> list[str]:
    return [
        "link set lo up",
        f"addr add {AZURE_ADDRESS}/24 dev eth0",
        "link set eth0 up",
        f"route add default via {_AZURE_GATEWAY}",
    ]


def _node_lines(node: NodeNetwork, *, bridge: bool) -> list[str]:
    lines = [
        "link set lo up",
        f"addr add {node.address}/32 dev eth0",
        "link set eth0 up",
        f"route add {FABRIC_ADDRESS}/32 dev eth0 src {node.address}",
        f"route add default via {FABRIC_ADDRESS} dev eth0 src {node.address}",
    ]
    if bridge:
        lines += [
            f"link add {BRIDGE} type bridge",
            f"addr add {node.bridge_address}/24 dev {BRIDGE}",
            f"link set {BRIDGE} up",
        ]
    else:
        # What has no pod must not go back to the fabric, which would send it here again.
        lines.append(f"route add unreachable {node.pods}")
    return lines


def _counter_rules(nodes: tuple[NodeNetwork, ...]) -> str:
    lines = [f"table ip {_COUNTERS} {{"]
    lines += [f"  counter imds_{node.name} {{\n  }}" for node in nodes]
    lines += ["  chain arriving {", "    type filter hook prerouting priority -300; policy accept;"]
    match = f"ip saddr {POD_NETWORK} ip daddr {METADATA_ADDRESS}"
    lines += [f'    iifname "{node.uplink}" {match} counter name imds_{node.name}' for node in nodes]
    lines += ["  }", "}"]
    return "\n".join(lines) + "\n"
