"""VMs and scale sets: which identities they carry, and the slow PATCH that changes that.

A PATCH answers 200 with Azure-AsyncOperation and takes effect when its time is over. It needs a right on the machine
and, for each identity that it adds, the right to assign it: one missing right refuses the whole request, as in Azure.
What a PATCH does to a machine is `changes`.
"""

from collections.abc import Callable
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from podidentity.lab.azure import answers, changes, roles, throttling
from podidentity.lab.azure.faults import Faults
from podidentity.lab.azure.state import Json, Machine, Operation, Principal, State, new_id

VIRTUAL_MACHINES = "Microsoft.Compute/virtualMachines"
SCALE_SETS = "Microsoft.Compute/virtualMachineScaleSets"
KINDS = {kind.lower(): kind for kind in (VIRTUAL_MACHINES, SCALE_SETS)}


class Context(NamedTuple):
    """What a machine's request works on."""

    state: State
    faults: Faults
    buckets: throttling.Buckets
    clock: Callable[[], float]


async def serve(request: Request, caller: Principal, path: str, context: Context) -> Response:
    """GET, PUT, PATCH and DELETE of one machine; GET of its instances' view; a path without a name lists."""
    parts = path.split("/")
    kind, machine_path = KINDS["/".join(parts[6:8]).lower()], "/".join(parts[:9])
    action = {"GET": "read", "DELETE": "delete"}.get(request.method, "write")
    roles.require(context.state, caller, f"{kind}/{action}", machine_path)
    if len(parts) == 8:
        return JSONResponse({"value": [document(context.state, one) for one in _below(context.state, path)]})
    machine = context.state.machines.get(machine_path.lower())
    if request.method == "PUT":
        return await _put(request, machine_path, kind, context)
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
    given = machine.given.get("properties") or {}
    provisioning = "Updating" if machine.operation else "Succeeded"
    shown: Json = {
        **{key: value for key, value in machine.given.items() if key != "identity"},
        "id": machine.id,
        "name": machine.id.rsplit("/", 1)[1],
        "type": machine.kind,
        "location": machine.location,
        "properties": {**given, "provisioningState": provisioning},
    }
    kinds = [
        *(["SystemAssigned"] if machine.system_principal else []),
        *(["UserAssigned"] if machine.identities else []),
    ]
    if not kinds:
        return shown
    shown["identity"] = {"type": ", ".join(kinds)}
    if machine.identities:
        shown["identity"]["userAssignedIdentities"] = {text: _ids(state, text) for text in machine.identities.values()}
    if machine.system_principal:
        shown["identity"] |= {"principalId": machine.system_principal, "tenantId": state.settings.tenant_id}
    return shown


def _below(state: State, path: str) -> list[Machine]:
    return [one for name, one in state.machines.items() if name.startswith(path.lower() + "/")]


def _missing(kind: str, parts: list[str]) -> str:
    return f"The Resource '{kind}/{parts[8]}' under resource group '{parts[4]}' was not found."


def _instances(machine: Machine, rest: list[str]) -> Json:
    if [one.lower() for one in rest] == ["instanceview"]:
        return {"statuses": [{"code": "PowerState/running", "displayStatus": "VM running"}]}
    raise answers.arm(404, "NotFound", f"The lab has no '{'/'.join(rest)}' of '{machine.id}'.")


def _ids(state: State, resource_id: str) -> Json:
    principal = state.identity_principal(resource_id)
    return {"principalId": principal.object_id, "clientId": principal.client_id} if principal else {}


async def _put(request: Request, path: str, kind: str, context: Context) -> Response:
    """Make a machine, or replace what was given; its identities stay, unless the body names others."""
    body = await request.json()
    key = path.lower()
    new = key not in context.state.machines
    machine = context.state.machines.setdefault(key, Machine(path, kind, str(body.get("location", ""))))
    machine.given = {name: body[name] for name in ("properties", "sku", "tags", "zones") if body.get(name) is not None}
    if body.get("identity"):
        change = changes.read(machine, body["identity"])
        changes.apply(context.state, machine, change)
    return JSONResponse(document(context.state, machine), 201 if new else 200)


def _check(state: State, caller: Principal, machine: Machine, change: changes.Change) -> None:
    action = "Microsoft.ManagedIdentity/userAssignedIdentities/assign/action"
    granted = action.replace("/assign", "/x/assign")  # roles grant `*/assign/action`; refusals name it without the `*`
    for text in change.add:
        if text.lower() not in state.identities:
            message = f"Failed to perform resource identity operation. Status: 'BadRequest'. Response: '{_gone(text)}'."
            raise answers.arm(400, "FailedIdentityOperation", message)
        if not roles.allowed(state, caller, granted, text):
            message = (
                f"The client '{caller.client_id}' with object id '{caller.object_id}' has permission to perform action "
                f"'{machine.kind}/write' on scope '{machine.id}'; however, it does not have permission to perform "
                f"action(s) '{action}' on the linked scope(s) '{text}' or the linked scope(s) are invalid."
            )
            raise answers.arm(403, "LinkedAuthorizationFailed", message)


def _gone(text: str) -> str:
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
    ends = context.clock() + faults.patch_seconds
    context.state.operations[name] = Operation(
        ends, machine.id, list(change.add), list(change.remove), change.system, error
    )
    machine.operation = name
    base = f"https://{request.headers['host']}/subscriptions/{machine.id.split('/')[2]}"
    where = f"{base}/providers/Microsoft.Compute/locations/{machine.location}/operations/{name}?api-version=2024-11-01"
    headers = {"Azure-AsyncOperation": where, "Retry-After": "1"}
    return JSONResponse(document(context.state, machine), headers=headers)
