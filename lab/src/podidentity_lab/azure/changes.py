"""How the identities of a machine change: what a PATCH asks for, and how that takes effect when its operation ends.

No task waits for the end: `settle` is called before each answer and carries out what is due, even if the lab was
stopped and resumed in between.
"""

from dataclasses import dataclass

from podidentity_lab.azure import answers
from podidentity_lab.azure.state import Json, Machine, Principal, State, new_id

IDENTITIES_PER_REQUEST = 150


@dataclass(frozen=True, slots=True)
class Change:
    """IDs of identities to add (as written) and to remove (lower case).

    `system` says whether the machine has a system-assigned identity afterwards; None when the request does not say.
    """

    add: tuple[str, ...]
    remove: tuple[str, ...]
    system: bool | None


def read(machine: Machine, identity: Json) -> Change:
    """Return the change that the `identity` of a body asks for. Refuses more identities than Azure takes at once."""
    entries = identity.get("userAssignedIdentities") or {}
    kind = str(identity.get("type", "")).lower()
    add = tuple(text for text, value in entries.items() if value is not None and text.lower() not in machine.identities)
    remove = tuple(text.lower() for text, value in entries.items() if value is None)
    if kind and "userassigned" not in kind:
        remove = tuple(machine.identities)
    if len(entries) > IDENTITIES_PER_REQUEST:
        message = f"At most {IDENTITIES_PER_REQUEST} identities can be added or removed in one request."
        raise answers.arm(400, "BadRequest", message)
    return Change(add, remove, "systemassigned" in kind if kind else None)


def settle(state: State, now: float) -> None:
    """Carry out every operation that ends at `now` or before."""
    for name, operation in state.operations.items():
        if operation.is_over or now < operation.ends_at:
            continue
        operation.is_over = True
        machine = state.machines.get(operation.machine_id.lower())
        if machine is None:
            continue
        machine.operation = "" if machine.operation == name else machine.operation
        if operation.error is None:
            apply(state, machine, Change(tuple(operation.add), tuple(operation.remove), operation.system))


def apply(state: State, machine: Machine, change: Change) -> None:
    """Change the machine's identities now."""
    for identity_key in change.remove:
        machine.identities.pop(identity_key, None)
    machine.identities.update({text.lower(): text for text in change.add if text.lower() in state.identities})
    if change.system and not machine.system_principal:
        principal = Principal(new_id(), new_id(), machine.id.rsplit("/", 1)[1], resource_id=machine.id)
        state.principals[principal.object_id] = principal
        machine.system_principal = principal.object_id
    if change.system is False and machine.system_principal:
        state.principals.pop(machine.system_principal, None)
        machine.system_principal = ""
