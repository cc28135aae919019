"""Microsoft Graph: service principals to look up, applications to make. What `az ad` and `az role` need; by `azure`.

Reading needs a token, writing needs to be an owner of the lab's subscription: the lab has no directory roles.
"""

import re
from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from podidentity.lab.azure import answers, graph_applications, roles
from podidentity.lab.azure.entra import Entra
from podidentity.lab.azure.state import Json, Principal, State

HOST = "graph.microsoft.com"
AUDIENCES = ("https://graph.microsoft.com",)
_FILTERS = {
    "client": re.compile(r"servicePrincipalNames/any\(\w+:\w+ eq '([^']*)'\)|appId eq '([^']*)'", re.IGNORECASE),
    "name": re.compile(r"displayName eq '([^']*)'|startswith\(displayName,\s*'([^']*)'\)", re.IGNORECASE),
    "object": re.compile(r"\bid eq '([^']*)'", re.IGNORECASE),
}


class Graph:
    """The directory."""

    def __init__(self, state: State, entra: Entra, clock: Callable[[], float]) -> None:
        self._state = state
        self._entra = entra
        self._clock = clock

    async def serve(self, request: Request) -> Response:
        """Answer one request."""
        caller = self._entra.caller(request, *AUDIENCES)
        request.state.who = caller.client_id
        path = re.sub("/+", "/", request.url.path).rstrip("/")
        parts = path.split("/")[2:]
        if parts == ["directoryObjects", "getByIds"] and request.method == "POST":
            wanted = set((await request.json())["ids"])
            found = [one for one in self._state.principals.values() if one.object_id in wanted]
            return JSONResponse({"value": [document(one, self._state) for one in found]})
        if request.method != "GET":
            self._require_owner(caller)
        if parts and parts[0].lower() in {"applications", "serviceprincipals"}:
            return await self._directory(request, parts)
        raise answers.arm(404, "Request_ResourceNotFound", f"Resource '{path}' does not exist.")

    async def _directory(self, request: Request, parts: list[str]) -> Response:
        if parts[0].lower() == "applications":
            return await graph_applications.serve(request, parts[1:], self._state, self._clock())
        if len(parts) == 1 and request.method == "POST":
            client_id = str((await request.json())["appId"])
            made = graph_applications.make_principal(self._state, client_id)
            return JSONResponse(document(made, self._state), 201)
        if len(parts) == 1:
            found = matching(list(self._state.principals.values()), request.query_params.get("$filter", ""))
            return JSONResponse({"value": [document(one, self._state) for one in found]})
        one = self._state.principals.get(parts[1])
        if one is None:
            raise answers.arm(404, "Request_ResourceNotFound", f"Resource '{parts[1]}' does not exist.")
        if request.method == "DELETE":
            del self._state.principals[one.object_id]
            return Response(status_code=204)
        if len(parts) > 2:  # owners, memberOf, appRoleAssignments: nobody and nothing
            return JSONResponse({"value": []})
        return JSONResponse(document(one, self._state))

    def _require_owner(self, caller: Principal) -> None:
        scope = f"/subscriptions/{self._state.settings.subscription_id}"
        if not roles.allowed(self._state, caller, "Microsoft.Authorization/roleAssignments/write", scope):
            message = "Insufficient privileges to complete the operation."
            raise answers.arm(403, "Authorization_RequestDenied", message)


def matching(principals: list[Principal], condition: str) -> list[Principal]:
    """The principals that a $filter names: by client ID, display name or object ID; all without one."""
    for kind, form in _FILTERS.items():
        asked = form.search(condition)
        if asked:
            value = next(text for text in asked.groups() if text is not None).lower()
            return [one for one in principals if value == _field(one, kind).lower()]
    return principals


def document(one: Principal, state: State) -> Json:
    """A service principal."""
    shown: Json = {
        "@odata.type": "#microsoft.graph.servicePrincipal",
        "id": one.object_id,
        "appId": one.client_id,
        "displayName": one.name,
        "appDisplayName": one.name,
        "appOwnerOrganizationId": state.settings.tenant_id,
        "servicePrincipalType": "ManagedIdentity" if one.resource_id else "Application",
        "servicePrincipalNames": [one.client_id],
        "accountEnabled": True,
    }
    if one.resource_id:
        shown["alternativeNames"] = ["isExplicit=True", one.resource_id]
    return shown


def _field(one: Principal, kind: str) -> str:
    return {"client": one.client_id, "name": one.name, "object": one.object_id}[kind]
