"""Microsoft Graph as far as `az ad` and `az role` need it: service principals here, and who asks for what.

Applications are in `graph_applications`, users and groups in `graph_people`.
Whoever has a token may read; only owners of the lab's subscription may write: the lab has no directory roles.
"""

import re
from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from podidentity_lab.azure import answers, graph_applications, graph_people, memberships, roles
from podidentity_lab.azure.entra import Entra
from podidentity_lab.azure.faults import Faults
from podidentity_lab.azure.state import Json, Principal, State, User

HOST = "graph.microsoft.com"
AUDIENCES = ("https://graph.microsoft.com",)
_MEMBERSHIPS = {"memberof", "transitivememberof", "getmembergroups", "checkmembergroups"}
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
        request.state.client_id, request.state.name = caller.client_id, caller.name
        path = re.sub("/+", "/", request.url.path).rstrip("/")
        parts = path.split("/")[2:]
        if parts[:1] == ["me"]:
            parts = ["users", self._user(caller).object_id, *parts[1:]]
        if parts == ["directoryObjects", "getByIds"] and request.method == "POST":
            documents = [self._document(str(object_id)) for object_id in (await request.json())["ids"]]
            return JSONResponse({"value": [entry for entry in documents if entry is not None]})
        if len(parts) == 3 and parts[2].lower() in _MEMBERSHIPS:
            return await self._memberships(request, parts[1], parts[2])
        if request.method != "GET":
            self._require_owner(caller)
        match [part.lower() for part in parts[:1]], len(parts):
            case ["applications" | "serviceprincipals"], _:
                return await self._directory(request, parts)
            case ["users"], _:
                return await graph_people.serve_users(request, parts[1:], self._state)
            case ["groups"], _:
                return await graph_people.serve_groups(request, parts[1:], self._state)
            case ["directoryobjects"], 2:
                content = self._document(parts[1])
                if content is not None:
                    return JSONResponse(content)
        raise answers.arm(404, "Request_ResourceNotFound", f"Resource '{path}' does not exist.")

    async def _memberships(self, request: Request, object_id: str, question: str) -> Response:
        """Answer which groups somebody is in: documents for a GET, IDs for an action's POST."""
        user = graph_people.find_user(self._state, object_id)
        known_id = user.object_id if user else object_id
        if self._document(known_id) is None:
            raise answers.arm(404, "Request_ResourceNotFound", f"Resource '{object_id}' does not exist.")
        body = await request.json() if request.method == "POST" else {}
        group_ids = graph_people.memberships_of(self._state, known_id, question, body)
        if request.method == "POST":
            return JSONResponse({"value": group_ids})
        return JSONResponse({"value": [self._document(group_id) for group_id in group_ids]})

    def _document(self, object_id: str) -> Json | None:
        principal = self._state.principals.get(object_id)
        return document(principal, self._state) if principal else graph_people.any_document(self._state, object_id)

    def _user(self, caller: Principal) -> User:
        """Return the user who asks. Refuses whoever is no user, as Graph does."""
        user = self._state.users.get(caller.object_id)
        if user is None:
            message = "/me request is only valid with delegated authentication flow."
            raise answers.arm(400, "BadRequest", message)
        return user

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
            memberships.forget(self._state, principal.object_id)
            return Response(status_code=204)
        if len(parts) > 2:  # owners, appRoleAssignments: nobody and nothing
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
