"""ARM: resource groups, roles and role assignments, vaults, identities, machines. One function for each thing done.

IDs compare without case and doubled slashes count once, as in Azure; any api-version is taken. Every request needs a
token for ARM and a role for its action. Machines' identities are in `arm_machines`.
"""

import re
from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from podidentity.lab.azure import answers, arm_machines, roles
from podidentity.lab.azure.entra import Entra
from podidentity.lab.azure.faults import Faults
from podidentity.lab.azure.state import AzureSettings, Json, Principal, RoleAssignment, State, new_id

HOST = "management.azure.com"
AUDIENCES = ("https://management.azure.com", "https://management.core.windows.net")
VAULT_TYPE = "Microsoft.KeyVault/vaults"
IDENTITY_TYPE = "Microsoft.ManagedIdentity/userAssignedIdentities"
_AUTHORIZATION = "microsoft.authorization"


class Arm:
    """The management endpoint."""

    def __init__(
        self, settings: AzureSettings, state: State, entra: Entra, faults: Faults, clock: Callable[[], float]
    ) -> None:
        self._settings = settings
        self.state = state
        self._entra = entra
        self._faults = faults
        self._clock = clock

    async def serve(self, request: Request) -> Response:
        """Answer one request."""
        path = re.sub("/+", "/", request.url.path).rstrip("/")
        if path.lower() == "/metadata/endpoints":
            return JSONResponse(_endpoints())
        caller = self._entra.caller(request, *AUDIENCES)
        request.state.who = caller.client_id
        if self._faults.arm_statuses:
            raise self._fault(self._faults.arm_statuses.pop(0))
        if path.lower() == "/subscriptions":
            return JSONResponse({"value": [self._subscription()]})
        return await self._route(request, caller, path)

    async def _route(self, request: Request, caller: Principal, path: str) -> Response:
        parts = path.lower().split("/")
        if len(parts) < 3 or parts[1] != "subscriptions" or parts[2] != self._settings.subscription_id.lower():
            raise answers.arm(404, "SubscriptionNotFound", f"The subscription of '{path}' could not be found.")
        if f"/providers/{_AUTHORIZATION}/" in path.lower():
            return await self._authorization(request, caller, path)
        if "operations" in parts[-2:]:
            return arm_machines.operation(self.state, parts[-1], self._clock())
        if len(parts) == 4 and parts[3] == "resources":
            return JSONResponse({"value": self._resources(request.query_params.get("$filter", ""))})
        if len(parts) == 3:
            return JSONResponse(self._subscription())
        if len(parts) == 5 and parts[3] == "resourcegroups":
            return await self._group(request, caller, path)
        if len(parts) >= 8 and parts[5] == "providers":
            return await self._resource(request, caller, path)
        raise answers.arm(404, "NotFound", f"The lab's ARM has nothing at '{path}'.")

    async def _resource(self, request: Request, caller: Principal, path: str) -> Response:
        parts = path.split("/")
        if "/".join(parts[:5]).lower() not in self.state.groups:
            raise answers.arm(404, "ResourceGroupNotFound", f"Resource group '{parts[4]}' could not be found.")
        kind = f"{parts[6]}/{parts[7]}".lower()
        if kind in arm_machines.KINDS and len(parts) >= 9:
            context = arm_machines.Context(self.state, self._faults, self._clock)
            return await arm_machines.serve(request, caller, "/".join(parts[:9]), context)
        stores = {VAULT_TYPE.lower(): self.state.vaults, IDENTITY_TYPE.lower(): self.state.identities}
        if kind not in stores:
            raise answers.arm(400, "InvalidResourceType", f"The lab's ARM does not know the type '{kind}'.")
        return await self._stored(request, caller, path, stores[kind])

    async def _stored(self, request: Request, caller: Principal, path: str, store: dict[str, Json]) -> Response:
        """GET, PUT and DELETE of what is a plain document: vaults and identities; a path without name lists."""
        parts = path.split("/")
        kind, key = f"{parts[6]}/{parts[7]}", path.lower()
        action = {"GET": "read", "PUT": "write", "PATCH": "write", "DELETE": "delete"}.get(request.method, "write")
        roles.require(self.state, caller, f"{kind}/{action}", path)
        if len(parts) == 8:
            return JSONResponse({"value": [item for name, item in store.items() if name.startswith(key + "/")]})
        if request.method == "PUT":
            new = key not in store
            body = await request.json()
            store[key] = self._vault(path, body) if store is self.state.vaults else self._identity(path, body)
            return JSONResponse(store[key], 201 if new else 200)
        if key not in store:
            raise answers.arm(
                404,
                "ResourceNotFound",
                f"The Resource '{kind}/{parts[-1]}' under resource group '{parts[4]}' was not found.",
            )
        if request.method == "DELETE":
            self._forget(store.pop(key))
            return Response(status_code=200)
        return JSONResponse(store[key])

    async def _group(self, request: Request, caller: Principal, path: str) -> Response:
        key, name = path.lower(), path.split("/")[4]
        action = "read" if request.method in {"GET", "HEAD"} else "write"
        roles.require(self.state, caller, f"Microsoft.Resources/subscriptions/resourceGroups/{action}", path)
        if request.method == "PUT":
            new = key not in self.state.groups
            self.state.groups[key] = group(path, (await request.json()).get("location", ""))
            return JSONResponse(self.state.groups[key], 201 if new else 200)
        if key not in self.state.groups:
            raise answers.arm(404, "ResourceGroupNotFound", f"Resource group '{name}' could not be found.")
        if request.method == "DELETE":
            del self.state.groups[key]
            for store in (self.state.vaults, self.state.identities):
                for item in [item for item in store if item.startswith(key + "/")]:
                    self._forget(store.pop(item))
            return Response(status_code=200)
        return JSONResponse(self.state.groups[key])

    async def _authorization(self, request: Request, caller: Principal, path: str) -> Response:
        scope, _, rest = path.partition(re.search(f"/providers/{_AUTHORIZATION}/", path, re.IGNORECASE)[0])  # type: ignore[index]  # the caller looked
        kind, _, name = rest.partition("/")
        if kind.lower() == "roledefinitions":
            asked = _quoted(request.query_params.get("$filter", ""), "roleName")
            found = [
                self._definition(key)
                for key, role in roles.ROLES.items()
                if asked in {"", role.name} and name in {"", key}
            ]
            return JSONResponse({"value": found} if not name else found[0])
        if request.method == "GET":
            wanted = _quoted(request.query_params.get("$filter", ""), "principalId")
            return JSONResponse(
                {
                    "value": [
                        self._assignment(one)
                        for one in self.state.roles.values()
                        if wanted in {"", one.principal_id} and _related(one.scope, scope)
                    ]
                }
            )
        if request.method == "DELETE":
            roles.require(self.state, caller, "Microsoft.Authorization/roleAssignments/delete", scope)
            gone = self.state.roles.pop(path.lower(), None)
            return JSONResponse(self._assignment(gone)) if gone else Response(status_code=204)
        roles.require(self.state, caller, "Microsoft.Authorization/roleAssignments/write", scope)
        return JSONResponse(self._assign(path, scope, (await request.json())["properties"]), 201)

    def _assign(self, path: str, scope: str, properties: Json) -> Json:
        role_id = properties["roleDefinitionId"].rsplit("/", 1)[1].lower()
        if role_id not in roles.ROLES:
            raise answers.arm(
                404, "RoleDefinitionDoesNotExist", f"The specified role definition with ID '{role_id}' does not exist."
            )
        if properties["principalId"] not in self.state.principals:
            message = (
                f"Principal {properties['principalId']} does not exist in the directory {self._settings.tenant_id}."
            )
            raise answers.arm(400, "PrincipalNotFound", message)
        held = (scope.lower(), properties["principalId"], role_id)
        if any((one.scope.lower(), one.principal_id, one.role_id) == held for one in self.state.roles.values()):
            raise answers.arm(409, "RoleAssignmentExists", "The role assignment already exists.")
        made = RoleAssignment(path, scope, properties["principalId"], role_id)
        self.state.roles[path.lower()] = made
        return self._assignment(made)

    def _assignment(self, one: RoleAssignment) -> Json:
        definition = self._definition(one.role_id)["id"]
        properties = {
            "principalId": one.principal_id,
            "principalType": "ServicePrincipal",
            "roleDefinitionId": definition,
            "scope": one.scope,
        }
        return {
            "id": one.id,
            "name": one.id.rsplit("/", 1)[1],
            "type": "Microsoft.Authorization/roleAssignments",
            "properties": properties,
        }

    def _definition(self, key: str) -> Json:
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
        path = (
            f"/subscriptions/{self._settings.subscription_id}/providers/Microsoft.Authorization/roleDefinitions/{key}"
        )
        return {"id": path, "name": key, "type": "Microsoft.Authorization/roleDefinitions", "properties": properties}

    def _vault(self, path: str, body: Json) -> Json:
        name = path.rsplit("/", 1)[1]
        given = body.get("properties", {})
        properties = {"accessPolicies": [], "enableRbacAuthorization": True, **given, "provisioningState": "Succeeded"}
        properties["vaultUri"] = f"https://{name}.vault.azure.net/"
        return {
            "id": path,
            "name": name,
            "type": VAULT_TYPE,
            "location": body.get("location", ""),
            "properties": properties,
        }

    def _identity(self, path: str, body: Json) -> Json:
        """A second PUT keeps the identity's IDs."""
        existing = self.state.identities.get(path.lower())
        if existing is not None:
            return existing
        name = path.rsplit("/", 1)[1]
        principal = Principal(new_id(), new_id(), name, resource_id=path)
        self.state.principals[principal.object_id] = principal
        properties = {
            "principalId": principal.object_id,
            "clientId": principal.client_id,
            "tenantId": self._settings.tenant_id,
        }
        return {
            "id": path,
            "name": name,
            "type": IDENTITY_TYPE,
            "location": body.get("location", ""),
            "tags": {},
            "properties": properties,
        }

    def _forget(self, resource: Json) -> None:
        self.state.principals.pop(resource["properties"].get("principalId", ""), None)

    def _resources(self, condition: str) -> list[Json]:
        kind, name = _quoted(condition, "resourceType").lower(), _quoted(condition, "name").lower()
        everything = [*self.state.vaults.values(), *self.state.identities.values()]
        kept = [
            item for item in everything if kind in {"", item["type"].lower()} and name in {"", item["name"].lower()}
        ]
        return [{key: item[key] for key in ("id", "name", "type", "location")} for item in kept]

    def _subscription(self) -> Json:
        own = self._settings.subscription_id
        names = {"id": f"/subscriptions/{own}", "subscriptionId": own, "tenantId": self._settings.tenant_id}
        return {
            **names,
            "displayName": "Lab",
            "state": "Enabled",
            "authorizationSource": "RoleBased",
            "managedByTenants": [],
        }

    def _fault(self, status: int) -> answers.Refusal:
        after = self._faults.retry_after_seconds
        headers = {} if after is None else {"Retry-After": str(after)}
        return answers.arm(
            status, "TooManyRequests" if status == 429 else "InternalServerError", "As the lab was told.", headers
        )


def group(path: str, location: str) -> Json:
    """A resource group's document."""
    succeeded = {"provisioningState": "Succeeded"}
    return {
        "id": path,
        "name": path.rsplit("/", 1)[1],
        "type": "Microsoft.Resources/resourceGroups",
        "location": location,
        "properties": succeeded,
    }


def _related(held: str, asked: str) -> bool:
    """Assignments above and below the scope that was asked about."""
    one, other = held.lower(), asked.lower()
    return one.startswith(other) or other.startswith(one)


def _quoted(condition: str, name: str) -> str:
    found = re.search(rf"\b{name} eq '([^']*)'", condition)
    return found[1] if found else ""


def _endpoints() -> Json:
    login = {
        "loginEndpoint": "https://login.microsoftonline.com",
        "audiences": ["https://management.azure.com/"],
        "tenant": "common",
        "identityProvider": "AAD",
    }
    suffixes = {"keyVaultDns": "vault.azure.net", "storage": "core.windows.net", "acrLoginServer": "azurecr.io"}
    graph = "https://graph.microsoft.com/"
    hosts = {
        "resourceManager": f"https://{HOST}/",
        "graph": graph,
        "microsoftGraphResourceId": graph,
        "graphAudience": graph,
    }
    return {
        "name": "AzureCloud",
        "portal": "https://portal.azure.com",
        "authentication": login,
        **hosts,
        "suffixes": suffixes,
    }
