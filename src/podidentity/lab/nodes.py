"""The lab's nodes: which there are, which Azure machine each is, and the files that a node of AKS has.

Called by `inside`.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from podidentity.lab.azure import Azure
from podidentity.lab.fabric import NodeNetwork

SCALE_SET = "aks-nodepool1-vmss"

_KUBELET_FLAGS = 'KUBELET_CONFIG="--cloud-config=/etc/kubernetes/azure.json --network-plugin={plugin}"\n'


def plan(count: int) -> tuple[NodeNetwork, ...]:
    """The networks of `count` nodes."""
    return tuple(NodeNetwork(f"node-{index}", index) for index in range(count))


def machines(azure: Azure, networks: Sequence[NodeNetwork], virtual_machines: int) -> dict[str, str]:
    """An Azure machine for each node, by name: the last `virtual_machines` are VMs, the others share a scale set."""
    shared = len(networks) - virtual_machines
    instances = azure.add_scale_set(SCALE_SET, shared) if shared else ()
    found = {network.name: machine for network, machine in zip(networks, instances, strict=False)}
    for network in networks[shared:]:
        found[network.name] = azure.add_virtual_machine(network.name)
    return found


def write_files(folder: Path, azure: Azure, *, bridge: bool) -> None:
    """What a pod finds at a hostPath: the cloud configuration with the cluster's credentials, the kubelet's flags."""
    settings = azure.settings
    cloud = {
        "cloud": "AzurePublicCloud",
        "tenantId": settings.tenant_id,
        "subscriptionId": settings.subscription_id,
        "aadClientId": settings.cluster.client_id,
        "aadClientSecret": settings.cluster.secret,
        "resourceGroup": settings.node_resource_group,
        "location": settings.location,
        "vmType": "vmss",
        "primaryScaleSetName": SCALE_SET,
        "useManagedIdentityExtension": False,
        "userAssignedIdentityID": "",
    }
    for name in ("etc/kubernetes", "etc/default", "run", "var/log", "var/lib/kubelet", "tmp"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    secret = folder / "etc/kubernetes/azure.json"
    secret.touch(0o600)
    secret.write_text(json.dumps(cloud, indent=2) + "\n")
    # The walk-through's daemon refuses to start on kubenet unless told; the lab's bridge has no such plugin to name.
    plugin = "cni" if bridge else "azure"
    (folder / "etc/default/kubelet").write_text(_KUBELET_FLAGS.format(plugin=plugin))
