"""ARM: who asks, and which part answers. Subscriptions and resource groups are here.

IDs compare without case and doubled slashes count once, as in Azure; any api-version is taken. Every request needs a
token for ARM and a role for its action. Roles are in `arm_roles`, machines in `arm_machines`, vaults and identities in
`arm_resources`.
"""

import re
from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from podidentity.lab.azure import answers, arm_machines, arm_resources, arm_roles, roles, throttling
from podidentity.lab.azure.entra import Entra
from podidentity.lab.azure.faults import Faults
from podidentity.lab.azure.state import Json, Principal, State

HOST = "management.azure.com"
AUDIENCES = ("https://management.azure.com", "https://management.core.windows.net")
_GROUPS = "Microsoft.Resources/subscriptions/resourceGroups"
_AUTHORIZATION = "/providers/microsoft.authorization/"


class Arm:
    """The management endpoint."""

    def __init__(self, state: State, entra: Entra, faults: Faults, clock: Callable[[], float]) -> None:
        self._settings = state.settings
        self._state = state
        self._entra = entra
        self._faults = faults
        self._clock = clock
        self._buckets = throttling.Buckets()

    async def serve(self, request: Request) -> Response:
        """Answer one request."""
        path = re.sub("/+", "/", request.url.path).rstrip("/")
        if path.lower() == "/metadata/endpoints":
            return JSONResponse(_endpoints())
        caller = self._entra.caller(request, *AUDIENCES)
        request.state.who = caller.client_id
        if self._faults.arm_statuses:
            raise answers.asked_for(self._faults.arm_statuses.pop(0), self._faults.headers())
        if path.lower() == "/subscriptions":
            seen = roles.sees_subscription(self._state, caller)
            return JSONResponse({"value": [self._subscription()] if seen else [], "count": {"type": "Total"}})
        if path.lower() == "/tenants":
            return JSONResponse({"value": [self._tenant()]})
        return await self._route(request, caller, path)

    async def _route(self, request: Request, caller: Principal, path: str) -> Response:
        parts = path.lower().split("/")
        if _AUTHORIZATION in path.lower():
            return await arm_roles.serve(request, caller, path, self._state)
        if len(parts) < 3 or parts[1] != "subscriptions" or parts[2] != self._settings.subscription_id.lower():
            name = parts[2] if len(parts) > 2 else ""
            raise answers.arm(404, "SubscriptionNotFound", f"The subscription '{name}' could not be found.")
        if "operations" in parts[-2:]:
            return arm_machines.operation(self._state, parts[-1], self._clock())
        if len(parts) == 3:
            return JSONResponse(self._subscription())
        if parts[3] == "resources":
            found = arm_resources.listed(self._state, request.query_params.get("$filter", ""), caller)
            return JSONResponse({"value": found})
        if parts[3] == "resourcegroups":
            return await self._below_groups(request, caller, path)
        if parts[3] == "providers" and len(parts) >= 6:
            return await self._provider(request, caller, path)
        raise _nothing(path)

    async def _below_groups(self, request: Request, caller: Principal, path: str) -> Response:
        parts = path.split("/")
        if len(parts) == 4:
            roles.require(self._state, caller, f"{_GROUPS}/read", path)
            return JSONResponse({"value": list(self._state.groups.values())})
        if len(parts) == 5:
            return await self._group(request, caller, path)
        if "/".join(parts[:5]).lower() not in self._state.groups:
            raise answers.arm(404, "ResourceGroupNotFound", f"Resource group '{parts[4]}' could not be found.")
        if len(parts) == 6 and parts[5].lower() == "resources":
            found = arm_resources.listed(self._state, request.query_params.get("$filter", ""), caller)
            inside = "/".join(parts[:5]).lower() + "/"
            return JSONResponse({"value": [one for one in found if one["id"].lower().startswith(inside)]})
        if len(parts) < 8 or parts[5].lower() != "providers":
            raise _nothing(path)
        if f"{parts[6]}/{parts[7]}".lower() in arm_machines.KINDS:
            context = arm_machines.Context(self._state, self._faults, self._buckets, self._clock)
            return await arm_machines.serve(request, caller, path, context)
        return await arm_resources.serve(request, caller, path, self._state, self._clock())

    async def _provider(self, request: Request, caller: Principal, path: str) -> Response:
        """What belongs to the subscription: providers, all machines of a kind, deleted vaults."""
        parts = path.lower().split("/")
        if len(parts) == 5:
            return JSONResponse({"namespace": path.split("/")[4], "registrationState": "Registered"})
        kind = f"{parts[4]}/{parts[5]}"
        if kind in arm_machines.KINDS and len(parts) == 6:
            roles.require(self._state, caller, f"{arm_machines.KINDS[kind]}/read", path)
            found = [one for one in self._state.machines.values() if one.kind.lower() == kind]
            return JSONResponse({"value": [arm_machines.document(self._state, one) for one in found]})
        return await arm_resources.serve_subscription(request, caller, path, self._state)

    async def _group(self, request: Request, caller: Principal, path: str) -> Response:
        key, name = path.lower(), path.split("/")[4]
        action = {"GET": "read", "HEAD": "read", "DELETE": "delete"}.get(request.method, "write")
        roles.require(self._state, caller, f"{_GROUPS}/{action}", path)
        if request.method == "PUT":
            new = key not in self._state.groups
            body = await request.json()
            self._state.groups[key] = group(path, body.get("location", ""), body.get("tags"))
            return JSONResponse(self._state.groups[key], 201 if new else 200)
        if key not in self._state.groups:
            raise answers.arm(404, "ResourceGroupNotFound", f"Resource group '{name}' could not be found.")
        if request.method == "HEAD":
            return Response(status_code=204)
        if request.method == "DELETE":
            arm_resources.forget_group(self._state, key, self._clock())
            return Response(status_code=200)
        return JSONResponse(self._state.groups[key])

    def _subscription(self) -> Json:
        own = self._settings.subscription_id
        names = {"id": f"/subscriptions/{own}", "subscriptionId": own, "tenantId": self._settings.tenant_id}
        policies = {"locationPlacementId": "Public_2014-09-01", "quotaId": "PayAsYouGo_2014-09-01"}
        return {
            **names,
            "displayName": "Lab",
            "state": "Enabled",
            "authorizationSource": "RoleBased",
            "subscriptionPolicies": {**policies, "spendingLimit": "Off"},
            "managedByTenants": [],
        }

    def _tenant(self) -> Json:
        own = self._settings.tenant_id
        return {"id": f"/tenants/{own}", "tenantId": own, "displayName": "lab", "tenantCategory": "Home"}


def group(path: str, location: str, tags: Json | None = None) -> Json:
    """A resource group's document."""
    return {
        "id": path,
        "name": path.rsplit("/", 1)[1],
        "type": "Microsoft.Resources/resourceGroups",
        "location": location,
        "tags": tags or {},
        "managedBy": None,
        "properties": {"provisioningState": "Succeeded"},
    }


def _nothing(path: str) -> answers.Refusal:
    return answers.arm(404, "NotFound", f"The lab's ARM has nothing at '{path}'.")


def _endpoints() -> Json:
    login = {
        "loginEndpoint": "https://login.microsoftonline.com",
        "audiences": ["https://management.core.windows.net/", "https://management.azure.com/"],
        "tenant": "common",
        "identityProvider": "AAD",
    }
    suffixes = {"keyVaultDns": "vault.azure.net", "storage": "core.windows.net", "acrLoginServer": "azurecr.io"}
    graph = "https://graph.microsoft.com/"
    hosts = {
        "resourceManager": f"https://{HOST}/",
        "graph": "https://graph.windows.net/",
        "microsoftGraphResourceId": graph,
        "graphAudience": "https://graph.windows.net/",
    }
    return {
        "name": "AzureCloud",
        "portal": "https://portal.azure.com",
        "authentication": login,
        **hosts,
        "suffixes": suffixes,
    }
