"""What MIC's assigned identities for one pod say, decided where the pod is: by the same code, without the objects.

NMI asks it in standard mode when it may watch identities and bindings. The result is in memory only, and equal to what
MIC writes once it has caught up: the same bindings in the same order, the same bound for a pod, the same client IDs.
The bound for a namespace is one of stored objects and does not count here: a node has fewer pods than that.
"""

from dataclasses import replace

from podidentity.core.assignment import assigning, planning
from podidentity.core.assignment.assigning import Offers
from podidentity.core.assignment.planning import Create
from podidentity.core.model.arm import ArmState
from podidentity.core.model.identities import AssignedState, AzureAssignedIdentity
from podidentity.core.model.policy import Policy
from podidentity.core.model.snapshot import Node, Pod, Snapshot


def pod_assignments(
    pod: Pod, node: Node, machine: ArmState | None, offers: Offers, policy: Policy
) -> tuple[AzureAssignedIdentity, ...]:
    """Return the assigned identities of `pod` on `node`; `offers` are those of its bindings, under `policy`.

    `machine` is what the node's VM or scale set carries, as MIC last read it from ARM. None: nobody knows. Then every
    identity counts as Assigned, and IMDS, which knows, has the last word.
    """
    targets = {policy.target_of(node): machine} if machine is not None else {}
    snapshot = Snapshot(pods=(pod,), nodes={node.name: node}, targets=targets)
    desired = assigning.desired_assignments(snapshot, policy, offers)
    writes = planning.plan(desired, snapshot, policy).writes
    assignments = tuple(write.assigned_identity for write in writes if isinstance(write, Create))
    if machine is not None:
        return assignments
    return tuple(replace(assignment, state=AssignedState.ASSIGNED) for assignment in assignments)
