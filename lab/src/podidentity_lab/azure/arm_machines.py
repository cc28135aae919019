"""VMs and scale sets in ARM: the identities that they have, and the slow PATCH that changes these.

A PATCH answers 200 with the header Azure-AsyncOperation and takes effect when that operation ends. It needs the right
to write the machine and, for each identity that it adds, the right to assign that: one missing right refuses the whole
request, as in Azure. How a PATCH changes a machine is in `changes`.
"""

from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from podidentity_lab.azure import answers, changes, roles, throttling
from podidentity_lab.azure.faults import Faults
from podidentity_lab.azure.state import Json, Machine, Operation, Principal, State, new_id

VIRTUAL_MACHINES = "Microsoft.Compute/virtualMachines"
SCALE_SETS = "Microsoft.Compute/virtualMachineScaleSets"
KINDS = {kind.lower(): kind for kind in (VIRTUAL_MACHINES, SCALE_SETS)}


class Context(NamedTuple):
    """What requests for machines work on: the lab's state, its faults, ARM's limits and the clock (Unix seconds)."""

    state: State
    faults: Faults
    buckets: throttling.Buckets
    clock: Callable[[], float]


async def serve(request: Request, caller: Principal, path: str, context: Context) -> Response:
    """Answer GET, PUT, PATCH and DELETE of a machine, GET of its `instanceView`, and GET of all below a path."""
    parts = path.split("/")
    kind, machine_path = KINDS["/".join(parts[6:8]).lower()], "/".join(parts[:9])
    action = {"GET": "read", "DELETE": "delete"}.get(request.method, "write")
    roles.require(context.state, caller, f"{kind}/{action}", machine_path)
    if len(parts) == 8:
        return JSONResponse({"value": [document(context.state, item) for item in _machines_below(context.state, path)]})
    machine = context.state.machines.get(machine_path.lower())
    if request.method == "PUT":
        return await _create_or_replace(request, machine_path, kind, context)
    if machine is None:
        raise answers.arm(404, "ResourceNotFound", _missing(kind, parts))
    if context.faults.throttle:
        limit = throttling.READS if request.method == "GET" else throttling.UPDATES
        context.buckets.take(machine.id, limit, context.clock())
    if len(parts) > 9:
        return JSONResponse(_instances(machine, parts[9:]))
    if request.method == "GET":
        return JSONResponse(document(context.state, machine))
    if request.method == "DELETE":
        context.state.machines.pop(machine_path.lower())
        return Response(status_code=200)
    change = changes.read(machine, (await request.json()).get("identity") or {})
    _check(context.state, caller, machine, change)
    return _start(request, machine, change, context)


def operation(state: State, name: str, now: float) -> Response:
    """Answer how far the operation `name` of a PATCH is."""
    entry = state.operations.get(name)
    if entry is None:
        raise answers.arm(404, "NotFound", f"There is no operation '{name}'.")
    if now < entry.ends_at:
        return JSONResponse({"name": name, "status": "InProgress"}, headers={"Retry-After": "1"})
    if entry.error:
        return JSONResponse({"name": name, "status": "Failed", "error": entry.error})
    return JSONResponse({"name": name, "status": "Succeeded"})


def document(state: State, machine: Machine) -> Json:
    """Return a machine as ARM shows it; without `identity` when it has none."""
    properties = machine.creation_body.get("properties") or {}
    provisioning = "Updating" if machine.operation else "Succeeded"
    content: Json = {
        **{key: value for key, value in machine.creation_body.items() if key != "identity"},
        "id": machine.id,
        "name": machine.id.rsplit("/", 1)[1],
        "type": machine.kind,
        "location": machine.location,
        "properties": {**properties, "provisioningState": provisioning},
    }
    kinds = [
        *(["SystemAssigned"] if machine.system_principal else []),
        *(["UserAssigned"] if machine.identities else []),
    ]
    if not kinds:
        return content
    content["identity"] = {"type": ", ".join(kinds)}
    if machine.identities:
        content["identity"]["userAssignedIdentities"] = {
            text: _ids(state, text) for text in machine.identities.values()
        }
    if machine.system_principal:
        content["identity"] |= {"principalId": machine.system_principal, "tenantId": state.settings.tenant_id}
    return content


def _machines_below(state: State, path: str) -> list[Machine]:
    return [machine for name, machine in state.machines.items() if name.startswith(path.lower() + "/")]


def _missing(kind: str, parts: list[str]) -> str:
    return f"The Resource '{kind}/{parts[8]}' under resource group '{parts[4]}' was not found."


def _instances(machine: Machine, segments: list[str]) -> Json:
    if [segment.lower() for segment in segments] == ["instanceview"]:
        return {"statuses": [{"code": "PowerState/running", "displayStatus": "VM running"}]}
    raise answers.arm(404, "NotFound", f"The lab has no '{'/'.join(segments)}' of '{machine.id}'.")


def _ids(state: State, resource_id: str) -> Json:
    principal = state.identity_principal(resource_id)
    return {"principalId": principal.object_id, "clientId": principal.client_id} if principal else {}


async def _create_or_replace(request: Request, path: str, kind: str, context: Context) -> Response:
    """Make a machine, or replace its properties; its identities stay, unless the body names others."""
    body = await request.json()
    key = path.lower()
    new = key not in context.state.machines
    machine = context.state.machines.get(key) or Machine(path, kind, str(body.get("location", "")))
    change = changes.read(machine, body.get("identity") or {})
    machine.creation_body = {
        name: body[name] for name in ("properties", "sku", "tags", "zones") if body.get(name) is not None
    }
    context.state.machines[key] = machine
    if body.get("identity"):
        changes.apply(context.state, machine, change)
    return JSONResponse(document(context.state, machine), 201 if new else 200)


def _check(state: State, caller: Principal, machine: Machine, change: changes.Change) -> None:
    action = "Microsoft.ManagedIdentity/userAssignedIdentities/assign/action"
    # Roles grant `*/assign/action`; refusals name the action without the `*`.
    permission = action.replace("/assign", "/x/assign")
    for text in change.add:
        if text.lower() not in state.identities:
            response = _not_found_body(text)
            message = f"Failed to perform resource identity operation. Status: 'BadRequest'. Response: '{response}'."
            raise answers.arm(400, "FailedIdentityOperation", message)
        if not roles.is_allowed(state, caller, permission, text):
            message = (
                f"The client '{caller.label}' with object id '{caller.object_id}' has permission to perform action "
                f"'{machine.kind}/write' on scope '{machine.id}'; however, it does not have permission to perform "
                f"action(s) '{action}' on the linked scope(s) '{text}' or the linked scope(s) are invalid."
            )
            raise answers.arm(403, "LinkedAuthorizationFailed", message)


def _not_found_body(text: str) -> str:
    return f'{{"error":{{"code":"BadRequest","message":"Resource \'{text}\' was not found."}}}}'


def _start(request: Request, machine: Machine, change: changes.Change, context: Context) -> Response:
    """Answer at once; the change takes effect when the operation ends."""
    if machine.operation:
        message = f"Another change of '{machine.id}' is under way; wait until it has ended."
        raise answers.arm(409, "OperationNotAllowed", message, {"Retry-After": "1"})
    name, faults = new_id(), context.faults
    error = None
    if faults.operation_errors:
        error = {"code": faults.operation_errors.pop(0), "message": "The lab was told to let this operation fail."}
    ends_at = context.clock() + faults.patch_seconds
    context.state.operations[name] = Operation(
        ends_at, machine.id, list(change.add), list(change.remove), change.system, error
    )
    machine.operation = name
    base = f"https://{request.headers['host']}/subscriptions/{machine.id.split('/')[2]}"
    address = (
        f"{base}/providers/Microsoft.Compute/locations/{quote(machine.location)}/operations/{name}"
        "?api-version=2024-11-01"
    )
    headers = {"Azure-AsyncOperation": address, "Retry-After": "1"}
    return JSONResponse(document(context.state, machine), headers=headers)
