"""The lab's nodes: which there are, which Azure machine each is, and the files that a node of AKS has."""

import json
from collections.abc import Sequence
from pathlib import Path

from podidentity_lab.azure import Azure
from podidentity_lab.fabric import NodeNetwork

SCALE_SET = "aks-nodepool1-vmss"

_KUBELET_FLAGS = 'KUBELET_CONFIG="--cloud-config=/etc/kubernetes/azure.json --network-plugin={plugin}"\n'


def plan(count: int) -> tuple[NodeNetwork, ...]:
    """Return the networks of `count` nodes."""
    return tuple(NodeNetwork(f"node-{index}", index) for index in range(count))


def machines(azure: Azure, networks: Sequence[NodeNetwork], virtual_machines: int) -> dict[str, str]:
    """Add an Azure machine for each node; return ARM IDs by node. The last `virtual_machines` are VMs of their own."""
    scale_set_size = len(networks) - virtual_machines
    instances = azure.add_scale_set(SCALE_SET, scale_set_size) if scale_set_size else ()
    by_name = {network.name: machine for network, machine in zip(networks, instances, strict=False)}
    for network in networks[scale_set_size:]:
        by_name[network.name] = azure.add_virtual_machine(network.name)
    return by_name


def write_files(folder: Path, azure: Azure | None, *, bridge: bool) -> None:
    """Write what a pod finds at a hostPath: the kubelet's flags, and the cloud configuration of `azure`, if any."""
    for name in ("etc/kubernetes", "etc/default", "run", "var/log", "var/lib/kubelet", "tmp"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    # Upstream's NMI refuses to start on kubenet unless told otherwise; the lab's bridge is no such plugin.
    plugin = "cni" if bridge else "azure"
    (folder / "etc/default/kubelet").write_text(_KUBELET_FLAGS.format(plugin=plugin))
    if azure is not None:
        secret = folder / "etc/kubernetes/azure.json"
        secret.touch(0o600)
        secret.write_text(json.dumps(_cloud_configuration(azure), indent=2) + "\n")


def _cloud_configuration(azure: Azure) -> dict[str, str | bool]:
    settings = azure.settings
    return {
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
