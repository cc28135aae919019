"""Builders: each makes one value with everything unimportant filled in, so that a test shows only what matters."""

from collections.abc import Iterable, Mapping

from podidentity.core.model import arm
from podidentity.core.model.identities import (
    POD_LABEL,
    AssignedState,
    AzureAssignedIdentity,
    AzureIdentity,
    AzureIdentityBinding,
    ObjectKey,
)
from podidentity.core.model.policy import Policy
from podidentity.core.model.snapshot import Node, Owner, Pod, Snapshot

SUBSCRIPTION = "22222222-2222-2222-2222-222222222222"
GROUP = "nodes"


def resource_id(name: str, group: str = "apps") -> str:
    """Write the ARM resource ID of a user-assigned identity."""
    provider = "Microsoft.ManagedIdentity/userAssignedIdentities"
    return f"/subscriptions/{SUBSCRIPTION}/resourcegroups/{group}/providers/{provider}/{name}"


def identity_id(name: str, group: str = "apps") -> arm.IdentityId:
    """Return the ID of a user-assigned identity."""
    result = arm.parse_identity_id(resource_id(name, group))
    assert result is not None
    return result


def identity(name: str = "reader", namespace: str = "default", **fields: object) -> AzureIdentity:
    """Build an AzureIdentity of type 0 whose ARM name is its own."""
    settings: dict[str, object] = {"resource_id": resource_id(name), "client_id": f"client-of-{name}"} | fields
    return AzureIdentity(ObjectKey(namespace, name), **settings)  # type: ignore[arg-type]  # tests name any field


def binding(
    name: str = "reader-binding", namespace: str = "default", azure_identity: str = "reader", selector: str = "reader"
) -> AzureIdentityBinding:
    """Build an AzureIdentityBinding."""
    return AzureIdentityBinding(ObjectKey(namespace, name), azure_identity, selector)


def pod(name: str = "web", namespace: str = "default", *, node: str = "n1", selector: str = "reader") -> Pod:
    """Build a running pod with the label."""
    labels = {POD_LABEL: selector} if selector else {}
    return Pod(ObjectKey(namespace, name), f"uid-of-{name}", node, "Running", ("10.244.1.2",), labels)


def mic_pod(**labels: str) -> Pod:
    """Build MIC's own pod, with its ReplicaSet and service account."""
    settings = {"pod-template-hash": "abc"} | labels
    return Pod(
        ObjectKey("default", "mic-abc-1"),
        "uid-of-mic",
        "n1",
        "Running",
        labels=settings,
        owner=Owner("ReplicaSet", f"mic-{settings['pod-template-hash']}"),
        service_account="aad-pod-id-mic-service-account",
    )


def node(name: str = "n1", scale_set: str = "ss") -> Node:
    """Build a node of a scale set; with an empty `scale_set`, a node without a provider ID."""
    if not scale_set:
        return Node(name)
    path = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{GROUP}/providers/Microsoft.Compute"
    return Node(name, f"azure://{path}/virtualMachineScaleSets/{scale_set}/virtualMachines/0")


def target(name: str = "ss") -> arm.ScaleSet:
    """Return a scale set."""
    return arm.scale_set(SUBSCRIPTION, GROUP, name)


def state(*names: str) -> arm.ArmState:
    """Build what ARM says of a target that carries these identities."""
    return arm.ArmState(
        frozenset(identity_id(name) for name in names),
        tuple((identity_id(name), f"client-of-{name}") for name in names),
    )


def assigned(
    pod: Pod | None = None, azure: AzureIdentity | None = None, state: AssignedState = AssignedState.ASSIGNED
) -> AzureAssignedIdentity:
    """Build the assigned identity that MIC writes for a pod and an identity."""
    for_pod, for_identity = pod or globals()["pod"](), azure or identity()
    key = ObjectKey("default", f"{for_pod.key.name}-{for_pod.key.namespace}-{for_identity.key.name}")
    bound = binding(
        f"{for_identity.key.name}-binding", for_identity.key.namespace, for_identity.key.name, for_pod.selector
    )
    return AzureAssignedIdentity(key, for_identity, bound, for_pod.key, for_pod.node, state)


def snapshot(
    pods: Iterable[Pod] = (),
    identities: Iterable[AzureIdentity] = (),
    bindings: Iterable[AzureIdentityBinding] = (),
    assigned_identities: Iterable[AzureAssignedIdentity] = (),
    nodes: Mapping[str, Node] | None = None,
) -> Snapshot:
    """Build a snapshot; without `nodes` there is one node, n1, of scale set ss."""
    return Snapshot(
        pods=tuple(pods),
        nodes={"n1": node()} if nodes is None else nodes,
        identities={item.key: item for item in identities},
        bindings=tuple(bindings),
        assigned_identities=tuple(assigned_identities),
    )


def policy(**fields: object) -> Policy:
    """Build a policy."""
    settings: dict[str, object] = {"subscription": SUBSCRIPTION, "group": GROUP} | fields
    return Policy(**settings)  # type: ignore[arg-type]  # tests name any field
