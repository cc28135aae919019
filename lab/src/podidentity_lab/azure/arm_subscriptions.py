"""The subscription and the tenant in ARM, their locations, and the registration of resource providers."""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from podidentity_lab.azure import answers, providers, regions, roles
from podidentity_lab.azure.state import Json, Principal, State

HOST = "management.azure.com"
_READ = "Microsoft.Resources/subscriptions/read"


def serve(request: Request, caller: Principal, path: str, state: State) -> Response:
    """Answer for the subscription, its locations, and its resource providers: `/subscriptions/ID[/...]`."""
    parts = path.split("/")
    scope = "/".join(parts[:3])
    _require_any_role(state, caller, scope)
    match request.method, [part.lower() for part in parts[3:]]:
        case "GET", []:
            return JSONResponse(subscription(state))
        case "GET", ["locations"]:
            subscription_id = state.settings.subscription_id
            return JSONResponse({"value": [regions.document(region, subscription_id) for region in regions.REGIONS]})
        case "GET", ["providers"]:
            return JSONResponse(_page(request, [providers.document(state, name) for name in providers.namespaces()]))
        case "GET", ["providers", name]:
            return JSONResponse(providers.document(state, providers.namespace(name)))
        case "POST", ["providers", name, ("register" | "unregister") as verb]:
            namespace = providers.namespace(name)
            roles.require(state, caller, f"{namespace}/{verb}/action", scope)
            (providers.register if verb == "register" else providers.unregister)(state, namespace)
            return JSONResponse(providers.document(state, namespace))
    raise answers.arm(404, "NotFound", f"The lab's ARM has nothing for {request.method} at '{path}'.")


def serve_tenant(path: str, caller: Principal, state: State) -> Response | None:
    """Answer what belongs to no subscription: lists of subscriptions, tenants and providers. None for other paths."""
    match [part.lower() for part in path.split("/")[1:]]:
        case ["subscriptions"]:
            values = [subscription(state)] if roles.sees_subscription(state, caller) else []
            return JSONResponse({"value": values, "count": {"type": "Total", "value": len(values)}})
        case ["tenants"]:
            return JSONResponse({"value": [tenant(state)]})
        case ["providers"]:
            return JSONResponse({"value": [_of_tenant(state, name) for name in providers.namespaces()]})
        case ["providers", name]:
            return JSONResponse(_of_tenant(state, providers.namespace(name)))
    return None


def subscription(state: State) -> Json:
    """Return the lab's subscription as ARM shows it."""
    subscription_id = state.settings.subscription_id
    names = {
        "id": f"/subscriptions/{subscription_id}",
        "subscriptionId": subscription_id,
        "tenantId": state.settings.tenant_id,
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


def tenant(state: State) -> Json:
    """Return the lab's tenant as ARM shows it."""
    tenant_id = state.settings.tenant_id
    return {
        "id": f"/tenants/{tenant_id}",
        "tenantId": tenant_id,
        "displayName": "lab",
        "defaultDomain": "lab.onmicrosoft.com",
        "domains": ["lab.onmicrosoft.com"],
        "tenantCategory": "Home",
        "tenantType": "AAD",
    }


def environment() -> Json:
    """Return the cloud that the lab stands for: `/metadata/endpoints` and `environment()` in templates."""
    login = {
        "loginEndpoint": "https://login.microsoftonline.com",
        "audiences": ["https://management.core.windows.net/", "https://management.azure.com/"],
        "tenant": "common",
        "identityProvider": "AAD",
    }
    suffixes = {
        "acrLoginServer": "azurecr.io",
        "attestationEndpoint": "attest.azure.net",
        "azureFrontDoorEndpointSuffix": "azurefd.net",
        "keyVaultDns": "vault.azure.net",
        "mhsmDns": "managedhsm.azure.net",
        "mysqlServerEndpoint": "mysql.database.azure.com",
        "postgresqlServerEndpoint": "postgres.database.azure.com",
        "sqlServerHostname": "database.windows.net",
        "storage": "core.windows.net",
        "storageSyncEndpointSuffix": "afs.azure.net",
        "synapseAnalytics": "dev.azuresynapse.net",
    }
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


def _require_any_role(state: State, caller: Principal, scope: str) -> None:
    """Refuse whoever has no role anywhere in the subscription: Azure shows it to all others, at whatever scope."""
    if not roles.sees_subscription(state, caller):
        roles.require(state, caller, _READ, scope)


def _page(request: Request, values: list[Json]) -> Json:
    """Return the part of a list that `$top` and `$skiptoken` name, with the address of the next part."""
    count, start = request.query_params.get("$top", ""), int(request.query_params.get("$skiptoken", "0"))
    end = start + max(int(count), 1) if count else len(values)
    if end >= len(values):
        return {"value": values[start:]}
    url = request.url.include_query_params(**{"$skiptoken": end}).replace(
        scheme="https", netloc=request.headers["host"]
    )
    return {"value": values[start:end], "nextLink": str(url)}


def _of_tenant(state: State, name: str) -> Json:
    document = providers.document(state, name)
    return {"namespace": name, "resourceTypes": document["resourceTypes"]}
