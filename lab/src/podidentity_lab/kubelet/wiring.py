"""A pod's place in the network: its namespace, its address, and the veth that leads to its node.

Two ways, as clusters have them: *bridge* (kubenet: all pods of a node on one bridge) and *routed* (Azure CNI, Calico: a
veth and a route for each pod, nothing shared).
"""

from podidentity.linux.commands import CommandError, run
from podidentity_lab.fabric import BRIDGE
from podidentity_lab.kubelet.node import Node
from podidentity_lab.linux.namespaces import ip_batch

_ROUTED_GATEWAY = "169.254.1.1"  # nobody has it; the veth's other end answers for it by its fixed hardware address
_ROUTED_HARDWARE = "ee:ee:ee:ee:ee:ee"


def namespace_name(uid: str) -> str:
    """Return the name of a pod's network namespace."""
    return f"pod-{uid[:13]}"


async def connect(node: Node, uid: str, address: str) -> None:
    """Make the namespace of a pod and connect it. Raises `HostError`."""
    namespace, link = namespace_name(uid), _link(uid)
    hardware = "" if node.cluster.bridge else f" address {_ROUTED_HARDWARE}"
    peer = f"type veth peer name eth0 netns {namespace}"
    await ip_batch([f"netns add {namespace}", f"link add {link} netns {node.name}{hardware} {peer}"])
    if node.cluster.bridge:
        await ip_batch([f"link set {link} master {BRIDGE} up"], node.name)
        commands = [f"addr add {address}/24 dev eth0", "link set eth0 up", "link set lo up"]
        commands.append(f"route add default via {node.network.bridge_address}")
    else:
        await ip_batch([f"link set {link} up", f"route add {address}/32 dev {link}"], node.name)
        commands = [f"addr add {address}/32 dev eth0", "link set eth0 up", "link set lo up"]
        commands.append(f"route add {_ROUTED_GATEWAY}/32 dev eth0")
        commands.append(f"neigh replace {_ROUTED_GATEWAY} lladdr {_ROUTED_HARDWARE} dev eth0 nud permanent")
        commands.append(f"route add default via {_ROUTED_GATEWAY} dev eth0")
    await ip_batch(commands, namespace)


async def disconnect(node: Node, uid: str) -> None:
    """Remove a pod's link and namespace, as far as they exist."""
    for command in (("-netns", node.name, "link", "delete", _link(uid)), ("netns", "delete", namespace_name(uid))):
        try:
            await run("ip", *command)
        except CommandError:
            continue  # never made, or removed already


def _link(uid: str) -> str:
    return f"veth{uid[:8]}"
