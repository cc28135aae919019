"""How a machine's identities change: what a request asks for, and what it does when its operation's time has come.

Nothing waits here. `settle` is called before each answer, so a change takes effect at its time whether or not the lab
ran meanwhile. Called by `arm_machines` and `azure`.
"""

from dataclasses import dataclass

from podidentity.lab.azure import answers
from podidentity.lab.azure.state import Json, Machine, Principal, State, new_id

IDENTITIES_PER_REQUEST = 150


@dataclass(frozen=True, slots=True)
class Change:
    """What a request asks for: identities to add (as written), to remove (lower case), and system-assigned or not."""

    add: tuple[str, ...]
    remove: tuple[str, ...]
    system: bool | None


def read(machine: Machine, identity: Json) -> Change:
    """Read the `identity` of a body. Refuses more identities than Azure takes at once."""
    given = identity.get("userAssignedIdentities") or {}
    kind = str(identity.get("type", "")).lower()
    add = tuple(text for text, value in given.items() if value is not None and text.lower() not in machine.identities)
    remove = tuple(text.lower() for text, value in given.items() if value is None)
    if kind and "userassigned" not in kind:
        remove = tuple(machine.identities)
    if len(given) > IDENTITIES_PER_REQUEST:
        message = f"At most {IDENTITIES_PER_REQUEST} identities can be added or removed in one request."
        raise answers.arm(400, "BadRequest", message)
    return Change(add, remove, "systemassigned" in kind if kind else None)


def settle(state: State, now: float) -> None:
    """Carry out every operation whose time is over."""
    for name, one in state.operations.items():
        if one.settled or now < one.ends_at:
            continue
        one.settled = True
        machine = state.machines.get(one.machine_id.lower())
        if machine is None:
            continue
        machine.operation = "" if machine.operation == name else machine.operation
        if one.error is None:
            apply(state, machine, Change(tuple(one.add), tuple(one.remove), one.system))


def apply(state: State, machine: Machine, change: Change) -> None:
    """Change the machine's identities now."""
    for gone in change.remove:
        machine.identities.pop(gone, None)
    machine.identities.update({text.lower(): text for text in change.add if text.lower() in state.identities})
    if change.system and not machine.system_principal:
        made = Principal(new_id(), new_id(), machine.id.rsplit("/", 1)[1], resource_id=machine.id)
        state.principals[made.object_id] = made
        machine.system_principal = made.object_id
    if change.system is False and machine.system_principal:
        state.principals.pop(machine.system_principal, None)
        machine.system_principal = ""
