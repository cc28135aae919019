"""Role definitions and role assignments at every scope."""

import re

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from podidentity_lab.azure import answers, memberships, roles
from podidentity_lab.azure.state import Json, Principal, RoleAssignment, State

_CREATION_TIME = "2024-01-01T00:00:00.0000000Z"
_PROVIDER = re.compile("/providers/microsoft.authorization/", re.IGNORECASE)


async def serve(request: Request, caller: Principal, path: str, state: State) -> Response:
    """Answer one request below `/providers/Microsoft.Authorization/`."""
    *scopes, tail = _PROVIDER.split(path)
    scope = scopes[-1] if len(scopes) == 1 else path[: -len(tail) - len("/providers/Microsoft.Authorization/")]
    kind, _, name = tail.partition("/")
    condition = request.query_params.get("$filter", "")
    match kind.lower(), request.method:
        case "roledefinitions", "GET":
            return _definitions(state, condition, name)
        case "roleassignments", "GET":
            roles.require(state, caller, "Microsoft.Authorization/roleAssignments/read", scope or "/")
            return JSONResponse(
                _list_assignments(state, scope, condition) if not name else _get_assignment(state, path)
            )
        case "roleassignments", "PUT":
            roles.require(state, caller, "Microsoft.Authorization/roleAssignments/write", scope)
            return _assign(state, path, scope, (await request.json())["properties"])
        case "roleassignments", "DELETE":
            roles.require(state, caller, "Microsoft.Authorization/roleAssignments/delete", scope)
            assignment = state.roles.pop(path.lower(), None)
            return JSONResponse(_assignment(state, assignment)) if assignment else Response(status_code=204)
        case (("denyassignments" | "roleeligibilityschedules"), "GET"):
            return JSONResponse({"value": []})
    raise answers.arm(404, "NotFound", f"The lab's ARM has nothing at '{path}'.")


def comparison_value(condition: str, name: str) -> str:
    """Return the text with which a $filter compares `name` (`NAME eq 'TEXT'`), or "" when it does not."""
    match = re.search(rf"\b{name} eq '([^']*)'", condition, re.IGNORECASE)
    return match[1] if match else ""


def _definitions(state: State, condition: str, name: str) -> Response:
    role_name = comparison_value(condition, "roleName").lower()
    definitions = [
        _definition(state, key)
        for key, role in roles.ROLES.items()
        if role_name in {"", role.name.lower()} and name.lower() in {"", key}
    ]
    if name and not definitions:
        raise _no_definition(name)
    return JSONResponse(definitions[0] if name else {"value": definitions})


def _list_assignments(state: State, scope: str, condition: str) -> Json:
    """Return the assignments at a scope, above it, and (without `atScope()` in the filter) below it."""
    principal_id = comparison_value(condition, "principalId")
    assignee_id = comparison_value(condition, "assignedTo") or _call_argument(condition, "assignedTo")
    holders = memberships.holders(state, assignee_id) if assignee_id else {principal_id}
    at_scope = "atscope()" in condition.lower()
    assignments = [
        _assignment(state, assignment)
        for assignment in state.roles.values()
        if (holders == {""} or assignment.principal_id in holders)
        and _related(assignment.scope, scope, at_scope=at_scope)
    ]
    return {"value": assignments}


def _call_argument(condition: str, name: str) -> str:
    match = re.search(rf"\b{name}\('([^']*)'\)", condition, re.IGNORECASE)
    return match[1] if match else ""


def _related(assignment_scope: str, scope: str, *, at_scope: bool) -> bool:
    """Whether an assignment is at `scope` or above it, or, unless `at_scope`, below it."""
    assignment_path, path = assignment_scope.lower().rstrip("/") + "/", scope.lower().rstrip("/") + "/"
    return path.startswith(assignment_path) or (not at_scope and assignment_path.startswith(path))


def _get_assignment(state: State, path: str) -> Json:
    assignment = state.roles.get(path.lower())
    if assignment is None:
        message = f"The role assignment '{path.rsplit('/', 1)[1]}' is not found."
        raise answers.arm(404, "RoleAssignmentNotFound", message)
    return _assignment(state, assignment)


def _assign(state: State, path: str, scope: str, properties: Json) -> Response:
    """Create an assignment: 201; 200 when it is there already under this name, as a template deployed again has it."""
    role_id = properties["roleDefinitionId"].rsplit("/", 1)[1].lower()
    if role_id not in roles.ROLES:
        raise _no_definition(role_id)
    if not memberships.kind(state, properties["principalId"]):
        tenant = state.settings.tenant_id
        message = (
            f"Principal {properties['principalId'].replace('-', '')} does not exist in the directory {tenant}. Check "
            "that you have the correct principal ID. If you are creating this principal and then immediately assigning "
            "a role, this error might be related to a replication delay."
        )
        raise answers.arm(400, "PrincipalNotFound", message)
    assignment = RoleAssignment(path, scope, properties["principalId"], role_id)
    namesake = _namesake(state, assignment)
    if namesake is not None:
        return JSONResponse(_assignment(state, namesake))
    for other in state.roles.values():
        if _holding(other) == _holding(assignment):
            message = (
                f"The role assignment already exists. The ID of the conflicting role assignment is {_name(other)}."
            )
            raise answers.arm(409, "RoleAssignmentExists", message)
    state.roles[path.lower()] = assignment
    return JSONResponse(_assignment(state, assignment), 201)


def _namesake(state: State, assignment: RoleAssignment) -> RoleAssignment | None:
    """Return the assignment of the same name, if there is one. A name is unique in the tenant.

    Raises `Refusal` when it has another scope, principal or role: Azure changes none of them.
    """
    name = _name(assignment).lower()
    namesake = next((other for other in state.roles.values() if _name(other).lower() == name), None)
    if namesake is not None and _holding(namesake) != _holding(assignment):
        message = "Tenant ID, application ID, principal ID, and scope are not allowed to be updated."
        raise answers.arm(400, "RoleAssignmentUpdateNotPermitted", message)
    return namesake


def _holding(assignment: RoleAssignment) -> tuple[str, str, str]:
    """Return scope, holder and role: of these three together there is one assignment."""
    return assignment.scope.lower(), assignment.principal_id, assignment.role_id


def _name(assignment: RoleAssignment) -> str:
    return assignment.id.rsplit("/", 1)[1]


def _no_definition(role_id: str) -> answers.Refusal:
    message = f"The specified role definition with ID '{role_id}' does not exist."
    return answers.arm(404, "RoleDefinitionDoesNotExist", message)


def _assignment(state: State, assignment: RoleAssignment) -> Json:
    times = {"createdOn": _CREATION_TIME, "updatedOn": _CREATION_TIME, "createdBy": "", "updatedBy": ""}
    properties = {
        "principalId": assignment.principal_id,
        "principalType": memberships.kind(state, assignment.principal_id) or "ServicePrincipal",
        "roleDefinitionId": _definition(state, assignment.role_id)["id"],
        "scope": assignment.scope,
        **times,
    }
    return {
        "id": assignment.id,
        "name": _name(assignment),
        "type": "Microsoft.Authorization/roleAssignments",
        "properties": properties,
    }


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
