"""VMs and scale sets: which identities they carry, and the slow PATCH that changes that.

A PATCH answers 200 with Azure-AsyncOperation and takes effect when its time is over. It needs a right on the machine
and, for each identity that it adds, the right to assign it: one missing right refuses the whole request, as in Azure.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from podidentity.lab.azure import answers, roles
from podidentity.lab.azure.faults import Faults
from podidentity.lab.azure.state import Json, Machine, Operation, Principal, State, new_id

KINDS = {"microsoft.compute/virtualmachines", "microsoft.compute/virtualmachinescalesets"}
IDENTITIES_PER_REQUEST = 150


class Context(NamedTuple):
    """What a machine's request works on."""

    state: State
    faults: Faults
    clock: Callable[[], float]


@dataclass(frozen=True, slots=True)
class Change:
    """What a PATCH asks for: identities to add (as written), to remove (lower case), and system-assigned or not."""

    add: tuple[str, ...]
    remove: tuple[str, ...]
    system: bool | None


async def serve(request: Request, caller: Principal, path: str, context: Context) -> Response:
    """GET and PATCH of one machine."""
    machine = context.state.machines.get(path.lower())
    kind = "/".join(path.split("/")[6:8])
    if machine is None:
        raise answers.arm(404, "ResourceNotFound", f"The Resource '{kind}/{path.rsplit('/', 1)[1]}' was not found.")
    if request.method == "GET":
        roles.require(context.state, caller, f"{kind}/read", path)
        return JSONResponse(document(context.state, machine))
    if request.method != "PATCH":
        raise answers.arm(405, "MethodNotAllowed", "The lab's machines take GET and PATCH.")
    roles.require(context.state, caller, f"{kind}/write", path)
    change = _read(machine, (await request.json()).get("identity") or {})
    _check(context.state, caller, machine, change)
    return await _start(request, machine, change, context)


def operation(state: State, name: str, now: float) -> Response:
    """What became of a PATCH."""
    found = state.operations.get(name)
    if found is None:
        raise answers.arm(404, "NotFound", f"There is no operation '{name}'.")
    if now < found.ends_at:
        return JSONResponse({"name": name, "status": "InProgress"}, headers={"Retry-After": "1"})
    if found.error:
        return JSONResponse({"name": name, "status": "Failed", "error": found.error})
    return JSONResponse({"name": name, "status": "Succeeded"})


def document(state: State, machine: Machine) -> Json:
    """A machine as ARM shows it; no `identity` when it has none."""
    shown: Json = {
        "id": machine.id,
        "name": machine.id.rsplit("/", 1)[1],
        "type": machine.kind,
        "location": machine.location,
        "properties": {"provisioningState": "Updating" if machine.busy else "Succeeded"},
    }
    kinds = [
        *(["SystemAssigned"] if machine.system_principal else []),
        *(["UserAssigned"] if machine.identities else []),
    ]
    if kinds:
        shown["identity"] = {"type": ", ".join(kinds)}
        if machine.identities:
            shown["identity"]["userAssignedIdentities"] = {
                text: _ids(state, text) for text in machine.identities.values()
            }
        if machine.system_principal:
            shown["identity"]["principalId"] = machine.system_principal
    return shown


def _ids(state: State, resource_id: str) -> Json:
    principal = state.identity_principal(resource_id)
    return {"principalId": principal.object_id, "clientId": principal.client_id} if principal else {}


def _read(machine: Machine, identity: Json) -> Change:
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


def _check(state: State, caller: Principal, machine: Machine, change: Change) -> None:
    for text in change.add:
        action = "Microsoft.ManagedIdentity/userAssignedIdentities/assign/action"
        if text.lower() not in state.identities:
            message = f"Failed to perform resource identity operation. Response: 'The resource {text} was not found.'"
            raise answers.arm(400, "FailedIdentityOperation", message)
        if not roles.allowed(state, caller, action.replace("/assign", "/x/assign"), text):
            message = (
                f"The client '{caller.client_id}' with object id '{caller.object_id}' has permission to perform action "
                f"'{machine.kind}/write' on scope '{machine.id}'; however, it does not have permission to perform "
                f"action(s) '{action}' on the linked scope(s) '{text}' or the linked scope(s) are invalid."
            )
            raise answers.arm(403, "LinkedAuthorizationFailed", message)


async def _start(request: Request, machine: Machine, change: Change, context: Context) -> Response:
    """Answer at once; the change takes effect when the operation ends."""
    if machine.busy:
        raise answers.arm(409, "OperationNotAllowed", f"Another change of '{machine.id}' is under way.")
    name = new_id()
    seconds = context.faults.patch_seconds
    context.state.operations[name] = Operation(context.clock() + seconds)
    machine.busy = True

    def finish() -> None:
        machine.busy = False
        for gone in change.remove:
            machine.identities.pop(gone, None)
        machine.identities.update({text.lower(): text for text in change.add})

    asyncio.get_running_loop().call_later(seconds, finish)
    shown = document(context.state, machine)
    base = f"https://{request.headers['host']}/subscriptions/{machine.id.split('/')[2]}"
    where = f"{base}/providers/Microsoft.Compute/locations/{machine.location}/operations/{name}?api-version=2024-11-01"
    return JSONResponse(shown, headers={"Azure-AsyncOperation": where, "Retry-After": "1"})
