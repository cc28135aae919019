"""Microsoft Graph as far as `az ad` and `az role` need it: service principals, and applications (`graph_applications`).

Whoever has a token may read; only owners of the lab's subscription may write: the lab has no directory roles.
"""

import re
from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from podidentity_lab.azure import answers, graph_applications, roles
from podidentity_lab.azure.entra import Entra
from podidentity_lab.azure.faults import Faults
from podidentity_lab.azure.state import Json, Principal, State

HOST = "graph.microsoft.com"
AUDIENCES = ("https://graph.microsoft.com",)
_FILTERS = {
    "client": re.compile(r"servicePrincipalNames/any\(\w+:\w+ eq '([^']*)'\)|appId eq '([^']*)'", re.IGNORECASE),
    "name": re.compile(r"displayName eq '([^']*)'|startswith\(displayName,\s*'([^']*)'\)", re.IGNORECASE),
    "object": re.compile(r"\bid eq '([^']*)'", re.IGNORECASE),
}


class Graph:
    """The directory of the lab's tenant."""

    def __init__(self, state: State, entra: Entra, faults: Faults, clock: Callable[[], float]) -> None:
        self._state = state
        self._entra = entra
        self._faults = faults
        self._clock = clock

    async def serve(self, request: Request) -> Response:
        """Answer one request."""
        caller = self._entra.caller(request, *AUDIENCES)
        request.state.client_id = caller.client_id
        path = re.sub("/+", "/", request.url.path).rstrip("/")
        parts = path.split("/")[2:]
        if parts == ["directoryObjects", "getByIds"] and request.method == "POST":
            object_ids = set((await request.json())["ids"])
            principals = [
                principal for principal in self._state.principals.values() if principal.object_id in object_ids
            ]
            return JSONResponse({"value": [document(principal, self._state) for principal in principals]})
        if request.method != "GET":
            self._require_owner(caller)
        if parts and parts[0].lower() in {"applications", "serviceprincipals"}:
            return await self._directory(request, parts)
        raise answers.arm(404, "Request_ResourceNotFound", f"Resource '{path}' does not exist.")

    async def _directory(self, request: Request, parts: list[str]) -> Response:
        if parts[0].lower() == "applications":
            delay = self._faults.federation_delay_seconds
            return await graph_applications.serve(request, parts[1:], self._state, self._clock(), delay)
        if len(parts) == 1 and request.method == "POST":
            client_id = str((await request.json())["appId"])
            new_principal = graph_applications.make_principal(self._state, client_id)
            return JSONResponse(document(new_principal, self._state), 201)
        if len(parts) == 1:
            principals = matching(list(self._state.principals.values()), request.query_params.get("$filter", ""))
            return JSONResponse({"value": [document(principal, self._state) for principal in principals]})
        principal = self._state.principals.get(parts[1])
        if principal is None:
            raise answers.arm(404, "Request_ResourceNotFound", f"Resource '{parts[1]}' does not exist.")
        if request.method == "DELETE":
            del self._state.principals[principal.object_id]
            return Response(status_code=204)
        if len(parts) > 2:  # owners, memberOf, appRoleAssignments: nobody and nothing
            return JSONResponse({"value": []})
        return JSONResponse(document(principal, self._state))

    def _require_owner(self, caller: Principal) -> None:
        scope = f"/subscriptions/{self._state.settings.subscription_id}"
        if not roles.is_allowed(self._state, caller, "Microsoft.Authorization/roleAssignments/write", scope):
            message = "Insufficient privileges to complete the operation."
            raise answers.arm(403, "Authorization_RequestDenied", message)


def matching(principals: list[Principal], condition: str) -> list[Principal]:
    """Return the principals that a $filter names, by client ID, display name or object ID; without a filter, all."""
    for kind, form in _FILTERS.items():
        match = form.search(condition)
        if match:
            value = next(text for text in match.groups() if text is not None).lower()
            return [principal for principal in principals if value == _field(principal, kind).lower()]
    return principals


def document(principal: Principal, state: State) -> Json:
    """Return a service principal as Graph shows it."""
    content: Json = {
        "@odata.type": "#microsoft.graph.servicePrincipal",
        "id": principal.object_id,
        "appId": principal.client_id,
        "displayName": principal.name,
        "appDisplayName": principal.name,
        "appOwnerOrganizationId": state.settings.tenant_id,
        "servicePrincipalType": "ManagedIdentity" if principal.resource_id else "Application",
        "servicePrincipalNames": [principal.client_id],
        "accountEnabled": True,
    }
    if principal.resource_id:
        content["alternativeNames"] = ["isExplicit=True", principal.resource_id]
    return content


def _field(principal: Principal, kind: str) -> str:
    return {"client": principal.client_id, "name": principal.name, "object": principal.object_id}[kind]
