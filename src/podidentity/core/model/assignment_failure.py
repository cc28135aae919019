"""An identity that Azure refuses to put on a VM or scale set: what the conditions, events and `explain` are made from.

The workers' state machine produces them. They are part of the Snapshot, so that users hear of them, until the identity
is on its target or no longer used there.
"""

from dataclasses import dataclass

from podidentity.core.model.arm import IdentityId, Target


@dataclass(frozen=True, slots=True)
class AssignmentFailure:
    """`identity` is wanted on `target` and is not there.

    `code` is ARM's error code ("" when it gave none); `message` is one sentence that says what to do.
    """

    identity: IdentityId
    target: Target
    code: str
    message: str
