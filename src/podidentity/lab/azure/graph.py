"""Microsoft Graph: looks service principals up, which is all that `az role assignment` and `az keyvault` need."""

import re

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from podidentity.lab.azure import answers
from podidentity.lab.azure.entra import Entra
from podidentity.lab.azure.state import Json, Principal, State

HOST = "graph.microsoft.com"
AUDIENCES = ("https://graph.microsoft.com",)
_BY_NAME = re.compile(r"servicePrincipalNames/any\(c:c eq '([^']*)'\)")
_BY_APP = re.compile(r"appId eq '([^']*)'")


class Graph:
    """The directory."""

    def __init__(self, state: State, entra: Entra) -> None:
        self._state = state
        self._entra = entra

    async def serve(self, request: Request) -> Response:
        """Answer one request."""
        request.state.who = self._entra.caller(request, *AUDIENCES).client_id
        path = request.url.path.rstrip("/")
        if path == "/v1.0/servicePrincipals":
            return JSONResponse({"value": self._matching(request.query_params.get("$filter", ""))})
        if path == "/v1.0/directoryObjects/getByIds" and request.method == "POST":
            wanted = set((await request.json())["ids"])
            found = [one for one in self._state.principals.values() if one.object_id in wanted]
            return JSONResponse({"value": [_document(one) for one in found]})
        if path.startswith("/v1.0/servicePrincipals/"):
            one = self._state.principals.get(path.rsplit("/", 1)[1])
            if one is not None:
                return JSONResponse(_document(one))
        raise answers.arm(404, "Request_ResourceNotFound", f"Resource '{path}' does not exist.")

    def _matching(self, condition: str) -> list[Json]:
        asked = _BY_NAME.search(condition) or _BY_APP.search(condition)
        if asked is None:
            return [_document(one) for one in self._state.principals.values()]
        one = self._state.principal_of(asked[1])
        return [_document(one)] if one else []


def _document(one: Principal) -> Json:
    shown: Json = {
        "@odata.type": "#microsoft.graph.servicePrincipal",
        "id": one.object_id,
        "appId": one.client_id,
        "displayName": one.name,
        "servicePrincipalType": "ManagedIdentity" if one.resource_id else "Application",
        "servicePrincipalNames": [one.client_id],
    }
    if one.resource_id:
        shown["alternativeNames"] = ["isExplicit=True", one.resource_id]
    return shown
