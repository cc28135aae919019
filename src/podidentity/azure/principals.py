"""Applications, their service principals (Graph) and role assignments (ARM): created when missing, deleted."""

import uuid
from typing import Any

import httpx2

from podidentity.azure import directory
from podidentity.azure.directory import Application
from podidentity.azure.federated import Requests
from podidentity.azure.management import document
from podidentity.errors import AzureError, UsageError

ROLE_VERSION = "2022-04-01"
_AUTHORIZATION = "providers/Microsoft.Authorization"
_CONFLICT = 409


async def ensure_application(graph: Requests, name: str) -> tuple[Application, bool]:
    """Return the application of a name, and whether it was created now. Raises AzureError."""
    application = await directory.find_application(graph, "displayName", name)
    if application is not None:
        return application, False
    answer = await graph.write("POST", "/v1.0/applications", {"displayName": name})
    return directory.application_of(document(answer)), True


async def ensure_principal(graph: Requests, client_id: str) -> str:
    """Return the object ID of an application's service principal, created when missing. Raises AzureError."""
    principal = await find_principal(graph, client_id)
    if principal:
        return principal
    answer = await graph.write("POST", "/v1.0/servicePrincipals", {"appId": client_id})
    return str(document(answer).get("id", ""))


async def find_principal(graph: Requests, client_id: str) -> str:
    """Return the object ID of an application's service principal; "" without one. Raises AzureError."""
    items = await graph.read_all(f"/v1.0/servicePrincipals?$filter=appId eq '{client_id}'")
    return next((str(item["id"]) for item in items if str(item.get("appId")).lower() == client_id.lower()), "")


async def assign_role(arm: Requests, scope: str, role: str, principal: str) -> bool:
    """Assign a role at a scope; whether it was not assigned before. Raises AzureError, UsageError for no such role."""
    # The same name for the same assignment: a second run is no second assignment.
    name = uuid.uuid5(uuid.NAMESPACE_URL, f"{scope.lower()} {role.lower()} {principal}")
    properties = {
        "roleDefinitionId": await _definition(arm, scope, role),
        "principalId": principal,
        "principalType": "ServicePrincipal",
    }
    path = f"{scope.rstrip('/')}/{_AUTHORIZATION}/roleAssignments/{name}?api-version={ROLE_VERSION}"
    try:
        answer = await arm.write("PUT", path, {"properties": properties})
    except AzureError as error:
        if error.status == _CONFLICT:  # it is there under another name
            return False
        raise
    return answer.status_code == httpx2.codes.CREATED


async def unassign_role(arm: Requests, scope: str, role: str, principal: str) -> int:
    """Delete the assignments of a role at a scope; how many there were. Raises as `assign_role`."""
    definition = await _definition(arm, scope, role)
    path = f"{scope.rstrip('/')}/{_AUTHORIZATION}/roleAssignments?api-version={ROLE_VERSION}"
    items = await arm.read_all(f"{path}&$filter=principalId eq '{principal}'")
    assignments = [item for item in items if _is_assignment(item, scope, definition, principal)]
    for item in assignments:
        await delete_assignment(arm, str(item["id"]))
    return len(assignments)


async def delete_assignment(arm: Requests, assignment: str) -> None:
    """Delete a role assignment by its resource ID; one that is gone is no error. Raises AzureError."""
    try:
        await arm.write("DELETE", f"{assignment}?api-version={ROLE_VERSION}")
    except AzureError as error:
        if error.status != httpx2.codes.NOT_FOUND:
            raise


def _is_assignment(item: dict[str, Any], scope: str, definition: str, principal: str) -> bool:
    properties = item.get("properties") or {}
    names = (properties.get("scope"), properties.get("roleDefinitionId"), properties.get("principalId"))
    return [str(name).rstrip("/").lower().rpartition("/roledefinitions/")[2] for name in names] == [
        name.rstrip("/").lower().rpartition("/roledefinitions/")[2] for name in (scope, definition, principal)
    ]


async def _definition(arm: Requests, scope: str, role: str) -> str:
    text = role.replace("'", "''")
    path = f"{scope.rstrip('/')}/{_AUTHORIZATION}/roleDefinitions?api-version={ROLE_VERSION}"
    items = await arm.read_all(f"{path}&$filter=roleName eq '{text}'")
    if not items:
        raise UsageError(f'--azure-role: there is no role "{role}" at {scope}; give the name of one')
    return str(items[0]["id"])
