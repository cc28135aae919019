"""Role definitions and role assignments at every scope. Called by `arm`; what a role allows is `roles`."""

import re

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from podidentity.lab.azure import answers, roles
from podidentity.lab.azure.state import Json, Principal, RoleAssignment, State

_CREATED = "2024-01-01T00:00:00.0000000Z"
_BETWEEN = re.compile("/providers/microsoft.authorization/", re.IGNORECASE)


async def serve(request: Request, caller: Principal, path: str, state: State) -> Response:
    """Answer one request below `/providers/Microsoft.Authorization/`."""
    *scopes, rest = _BETWEEN.split(path)
    scope = scopes[-1] if len(scopes) == 1 else path[: -len(rest) - len("/providers/Microsoft.Authorization/")]
    kind, _, name = rest.partition("/")
    condition = request.query_params.get("$filter", "")
    match kind.lower(), request.method:
        case "roledefinitions", "GET":
            return _definitions(state, condition, name)
        case "roleassignments", "GET":
            roles.require(state, caller, "Microsoft.Authorization/roleAssignments/read", scope or "/")
            return JSONResponse(_listed(state, scope, condition) if not name else _named(state, path))
        case "roleassignments", "PUT":
            roles.require(state, caller, "Microsoft.Authorization/roleAssignments/write", scope)
            return JSONResponse(_assign(state, path, scope, (await request.json())["properties"]), 201)
        case "roleassignments", "DELETE":
            roles.require(state, caller, "Microsoft.Authorization/roleAssignments/delete", scope)
            gone = state.roles.pop(path.lower(), None)
            return JSONResponse(_assignment(state, gone)) if gone else Response(status_code=204)
        case (("denyassignments" | "roleeligibilityschedules"), "GET"):
            return JSONResponse({"value": []})
    raise answers.arm(404, "NotFound", f"The lab's ARM has nothing at '{path}'.")


def quoted(condition: str, name: str) -> str:
    """The text that a $filter compares `name` with; "" when it does not."""
    found = re.search(rf"\b{name} eq '([^']*)'", condition, re.IGNORECASE)
    return found[1] if found else ""


def _definitions(state: State, condition: str, name: str) -> Response:
    asked = quoted(condition, "roleName").lower()
    found = [
        _definition(state, key)
        for key, role in roles.ROLES.items()
        if asked in {"", role.name.lower()} and name.lower() in {"", key}
    ]
    if name and not found:
        raise _no_definition(name)
    return JSONResponse(found[0] if name else {"value": found})


def _listed(state: State, scope: str, condition: str) -> Json:
    """At a scope: what is assigned there, above it, and (without `atScope()`) below it."""
    wanted = quoted(condition, "principalId") or quoted(condition, "assignedTo")
    wanted = wanted or _called(condition, "assignedTo")
    at_scope = "atscope()" in condition.lower()
    found = [
        _assignment(state, one)
        for one in state.roles.values()
        if wanted in {"", one.principal_id} and _related(one.scope, scope, at_scope=at_scope)
    ]
    return {"value": found}


def _called(condition: str, name: str) -> str:
    found = re.search(rf"\b{name}\('([^']*)'\)", condition, re.IGNORECASE)
    return found[1] if found else ""


def _related(one: str, other: str, *, at_scope: bool) -> bool:
    held, asked = one.lower().rstrip("/") + "/", other.lower().rstrip("/") + "/"
    return asked.startswith(held) or (not at_scope and held.startswith(asked))


def _named(state: State, path: str) -> Json:
    one = state.roles.get(path.lower())
    if one is None:
        message = f"The role assignment '{path.rsplit('/', 1)[1]}' is not found."
        raise answers.arm(404, "RoleAssignmentNotFound", message)
    return _assignment(state, one)


def _assign(state: State, path: str, scope: str, properties: Json) -> Json:
    role_id = properties["roleDefinitionId"].rsplit("/", 1)[1].lower()
    if role_id not in roles.ROLES:
        raise _no_definition(role_id)
    if properties["principalId"] not in state.principals:
        tenant = state.settings.tenant_id
        message = (
            f"Principal {properties['principalId'].replace('-', '')} does not exist in the directory {tenant}. Check "
            "that you have the correct principal ID. If you are creating this principal and then immediately assigning "
            "a role, this error might be related to a replication delay."
        )
        raise answers.arm(400, "PrincipalNotFound", message)
    held = (scope.lower(), properties["principalId"], role_id)
    for one in state.roles.values():
        if (one.scope.lower(), one.principal_id, one.role_id) == held:
            message = (
                f"The role assignment already exists. The ID of the conflicting role assignment is {one.id[-36:]}."
            )
            raise answers.arm(409, "RoleAssignmentExists", message)
    made = RoleAssignment(path, scope, properties["principalId"], role_id)
    state.roles[path.lower()] = made
    return _assignment(state, made)


def _no_definition(role_id: str) -> answers.Refusal:
    message = f"The specified role definition with ID '{role_id}' does not exist."
    return answers.arm(404, "RoleDefinitionDoesNotExist", message)


def _assignment(state: State, one: RoleAssignment) -> Json:
    times = {"createdOn": _CREATED, "updatedOn": _CREATED, "createdBy": "", "updatedBy": ""}
    properties = {
        "principalId": one.principal_id,
        "principalType": "ServicePrincipal",
        "roleDefinitionId": _definition(state, one.role_id)["id"],
        "scope": one.scope,
        **times,
    }
    name = one.id.rsplit("/", 1)[1]
    return {"id": one.id, "name": name, "type": "Microsoft.Authorization/roleAssignments", "properties": properties}


def _definition(state: State, key: str) -> Json:
    role = roles.ROLES[key]
    permission = {
        "actions": list(role.actions),
        "notActions": list(role.not_actions),
        "dataActions": list(role.data_actions),
        "notDataActions": [],
    }
    properties = {
        "roleName": role.name,
        "type": "BuiltInRole",
        "description": role.name,
        "assignableScopes": ["/"],
        "permissions": [permission],
    }
    path = f"/subscriptions/{state.settings.subscription_id}/providers/Microsoft.Authorization/roleDefinitions/{key}"
    return {"id": path, "name": key, "type": "Microsoft.Authorization/roleDefinitions", "properties": properties}
