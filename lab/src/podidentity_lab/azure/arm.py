"""ARM: checks who asks and hands each request to the module for it; subscriptions and resource groups are here.

IDs compare without case and doubled slashes count once, as in Azure; any api-version is accepted. Every request needs a
token for ARM and a role for its action. Roles are in `arm_roles`, machines in `arm_machines`, vaults and identities in
`arm_resources`.
"""

import re
from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from podidentity_lab.azure import answers, arm_machines, arm_resources, arm_roles, federation, roles, throttling
from podidentity_lab.azure.entra import Entra
from podidentity_lab.azure.faults import Faults
from podidentity_lab.azure.state import Json, Principal, State

HOST = "management.azure.com"
AUDIENCES = ("https://management.azure.com", "https://management.core.windows.net")
_GROUPS = "Microsoft.Resources/subscriptions/resourceGroups"
_AUTHORIZATION = "/providers/microsoft.authorization/"
_FEDERATION = f"userassignedidentities/{federation.KIND}".lower()


class Arm:
    """Azure's management endpoint, `management.azure.com`."""

    def __init__(self, state: State, entra: Entra, faults: Faults, clock: Callable[[], float]) -> None:
        self._settings = state.settings
        self._state = state
        self._entra = entra
        self._faults = faults
        self._clock = clock
        self._buckets = throttling.Buckets()
        self._federation = federation.Federation(state, faults, self._buckets, clock)

    async def serve(self, request: Request) -> Response:
        """Answer one request."""
        path = re.sub("/+", "/", request.url.path).rstrip("/")
        if path.lower() == "/metadata/endpoints":
            return JSONResponse(_endpoints())
        caller = self._entra.caller(request, *AUDIENCES)
        request.state.client_id = caller.client_id
        if self._faults.arm_statuses:
            raise answers.asked_for(self._faults.arm_statuses.pop(0), self._faults.headers())
        if path.lower() == "/subscriptions":
            has_role = roles.sees_subscription(self._state, caller)
            return JSONResponse({"value": [self._subscription()] if has_role else [], "count": {"type": "Total"}})
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
            resources = arm_resources.find_resources(self._state, request.query_params.get("$filter", ""), caller)
            return JSONResponse({"value": resources})
        if parts[3] == "resourcegroups":
            return await self._below_groups(request, caller, path)
        if parts[3] == "providers" and len(parts) >= 6:
            return await self._provider(request, caller, path)
        raise _no_such_path(path)

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
            resources = arm_resources.find_resources(self._state, request.query_params.get("$filter", ""), caller)
            inside = "/".join(parts[:5]).lower() + "/"
            return JSONResponse(
                {"value": [resource for resource in resources if resource["id"].lower().startswith(inside)]}
            )
        if len(parts) < 8 or parts[5].lower() != "providers":
            raise _no_such_path(path)
        if f"{parts[6]}/{parts[7]}".lower() in arm_machines.KINDS:
            context = arm_machines.Context(self._state, self._faults, self._buckets, self._clock)
            return await arm_machines.serve(request, caller, path, context)
        if len(parts) >= 10 and f"{parts[7]}/{parts[9]}".lower() == _FEDERATION:
            return await self._federation.serve(request, caller, path)
        return await arm_resources.serve(request, caller, path, self._state, self._clock())

    async def _provider(self, request: Request, caller: Principal, path: str) -> Response:
        """Answer for what belongs to the subscription: providers, all machines of a kind, deleted vaults."""
        parts = path.lower().split("/")
        if len(parts) == 5:
            return JSONResponse({"namespace": path.split("/")[4], "registrationState": "Registered"})
        kind = f"{parts[4]}/{parts[5]}"
        if kind in arm_machines.KINDS and len(parts) == 6:
            roles.require(self._state, caller, f"{arm_machines.KINDS[kind]}/read", path)
            machines = [machine for machine in self._state.machines.values() if machine.kind.lower() == kind]
            return JSONResponse({"value": [arm_machines.document(self._state, machine) for machine in machines]})
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
        subscription_id = self._settings.subscription_id
        names = {
            "id": f"/subscriptions/{subscription_id}",
            "subscriptionId": subscription_id,
            "tenantId": self._settings.tenant_id,
        }
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
        tenant_id = self._settings.tenant_id
        return {"id": f"/tenants/{tenant_id}", "tenantId": tenant_id, "displayName": "lab", "tenantCategory": "Home"}


def group(path: str, location: str, tags: Json | None = None) -> Json:
    """Return a new resource group as ARM shows it."""
    return {
        "id": path,
        "name": path.rsplit("/", 1)[1],
        "type": "Microsoft.Resources/resourceGroups",
        "location": location,
        "tags": tags or {},
        "managedBy": None,
        "properties": {"provisioningState": "Succeeded"},
    }


def _no_such_path(path: str) -> answers.Refusal:
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
