"""Azure's management libraries for Python create, change and read resources of the lab's Azure."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from interop.stage import Record, Stage
from podidentity_lab.nodes import SCALE_SET

HERE = Path(__file__).parent


@pytest.mark.timeout(900)
def test_the_management_libraries_work_unmodified(stage: Stage, client: Callable[[str], Path], record: Record) -> None:
    """They create an identity, a role and a VM, assign and remove the identity, and raise errors of their own types."""
    directory, own = client("python"), stage.lab.variables
    variables = {
        "AZURE_SUBSCRIPTION_ID": own["LAB_SUBSCRIPTION_ID"],
        "AZURE_TENANT_ID": own["LAB_TENANT_ID"],
        "AZURE_CLIENT_ID": own["LAB_OWNER_CLIENT_ID"],
        "AZURE_CLIENT_SECRET": own["LAB_OWNER_CLIENT_SECRET"],
        "GROUP": "interop",
        "IDENTITY": "managed",
        "MACHINE": "machine",
        "NODE_GROUP": own["LAB_NODE_RESOURCE_GROUP"],
        "SCALE_SET": SCALE_SET,
        "CLUSTER_CLIENT_ID": own["LAB_CLUSTER_CLIENT_ID"],
        "CLUSTER_CLIENT_SECRET": cluster_secret(stage),
    }
    done = stage.on_host(f"{directory}/bin/python {HERE}/python/management.py", **variables)
    said = done.json()
    for package, version in said["versions"].items():
        record(f"Python {package}", version, "makes, changes and reads its resources; errors have their types")
    identity = stage.admin.identity("interop", "managed")
    assert "managed" in said["identities"]
    assert said["roles"] == ["Reader"]
    assert [[one.lower() for one in carried] for carried in said["machine"]] == [[identity.lower()], []]
    assert said["missing"] == "ResourceNotFoundError ResourceNotFound"
    assert said["refused"] == "403 LinkedAuthorizationFailed"


def cluster_secret(stage: Stage) -> str:
    """Return the cluster's own secret, as a node's azure.json has it."""
    node = stage.lab.directory / "nodes" / "node-0"
    return str(json.loads((node / "etc/kubernetes/azure.json").read_text())["aadClientSecret"])
