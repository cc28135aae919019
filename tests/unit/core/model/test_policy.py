"""Which VM or scale set a node is, by the settings of an installation."""

import make
from podidentity.core.model.snapshot import Node


def test_a_node_without_a_cloud_provider_is_a_vm_of_the_configured_group() -> None:
    """Such a node is a VM of the node's name, in the subscription and group of azure.json, as in upstream."""
    policy = make.policy(subscription="s", group="g")
    target = policy.target_of(Node("n9"))
    assert str(target) == "VM n9"
    assert target.path == "/subscriptions/s/resourceGroups/g/providers/Microsoft.Compute/virtualMachines/n9"
