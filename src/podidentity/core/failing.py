"""An identity that Azure refuses to put on a VM or scale set: what the conditions, events and `explain` are made from.

Made by the workers' state machine; part of the Snapshot, so that a plan can tell it to users. Gone from the Snapshot as
soon as the identity is on its target or nothing uses it there any more.
"""

from dataclasses import dataclass

from podidentity.core.arm import IdentityId, Target


@dataclass(frozen=True, slots=True)
class Failing:
    """`identity` is wanted on `target` and is not there.

    `code` is ARM's error code ("" when it gave none); `why` is one sentence that says what to do.
    """

    identity: IdentityId
    target: Target
    code: str
    why: str
