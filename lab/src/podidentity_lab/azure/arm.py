"""ARM: checks who asks and hands each request to the module for it.

IDs compare without case and doubled slashes count once, as in Azure; any api-version is accepted. Every request needs a
token for ARM and a role for its action. Roles are in `arm_roles`, machines in `arm_machines`, vaults and identities in
`arm_resources`, resource groups in `arm_groups`, the subscription and its resource providers in `arm_subscriptions`.
"""

import re
from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from podidentity_lab.azure import (
    answers,
    arm_deployments,
    arm_groups,
    arm_machines,
    arm_resources,
    arm_roles,
    arm_secrets,
    arm_subscriptions,
    federation,
    providers,
    roles,
    throttling,
)
from podidentity_lab.azure.entra import Entra
from podidentity_lab.azure.faults import Faults
from podidentity_lab.azure.state import Principal, State

HOST = arm_subscriptions.HOST
AUDIENCES = ("https://management.azure.com", "https://management.core.windows.net")
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
        self._deployments = arm_deployments.Deployments(state, self._route, clock)
        self._federation = federation.Federation(state, faults, self._buckets, clock)

    async def serve(self, request: Request) -> Response:
        """Answer one request."""
        path = _canonical_path(request.url.path)
        if path.lower() == "/metadata/endpoints":
            return JSONResponse(arm_subscriptions.environment())
        caller = self._entra.caller(request, *AUDIENCES)
        request.state.client_id, request.state.name = caller.client_id, caller.name
        if self._faults.arm_statuses:
            raise answers.asked_for(self._faults.arm_statuses.pop(0), self._faults.headers())
        response = arm_subscriptions.serve_tenant(path, caller, self._state)
        if response is not None:
            return response
        return await self._route(request, caller, path)

    async def _route(self, request: Request, caller: Principal, path: str) -> Response:
        parts = path.lower().split("/")
        if _AUTHORIZATION in path.lower():
            return await arm_roles.serve(request, caller, path, self._state)
        if len(parts) < 3 or parts[1] != "subscriptions" or parts[2] != self._settings.subscription_id.lower():
            name = parts[2] if len(parts) > 2 else ""
            raise answers.arm(404, "SubscriptionNotFound", f"The subscription '{name}' could not be found.")
        if arm_deployments.PATH.fullmatch(path):
            return await self._deployments.serve(request, caller, path)
        if "operations" in parts[-2:]:
            return arm_machines.operation(self._state, parts[-1], self._clock())
        if len(parts) == 3 or parts[3] == "locations" or (parts[3] == "providers" and _is_registration(parts)):
            return arm_subscriptions.serve(request, caller, path, self._state)
        if parts[3] == "resources":
            return arm_resources.serve_all(request, caller, path, self._state)
        if parts[3] == "resourcegroups":
            return await self._below_groups(request, caller, path)
        if parts[3] == "providers":
            return await self._provider(request, caller, path)
        raise _no_such_path(path)

    async def _below_groups(self, request: Request, caller: Principal, path: str) -> Response:
        parts = path.split("/")
        if len(parts) == 4:
            return arm_groups.serve_all(request, caller, path, self._state)
        if len(parts) == 5:
            return await arm_groups.serve(request, caller, path, self._state, self._clock())
        arm_groups.require(self._state, path)
        if len(parts) == 6 and parts[5].lower() == "resources":
            return arm_resources.serve_all(request, caller, path, self._state)
        if len(parts) < 8 or parts[5].lower() != "providers":
            raise _no_such_path(path)
        if request.method not in {"GET", "DELETE"}:
            providers.require_registration(self._state, parts[6])
        if f"{parts[6]}/{parts[7]}".lower() in arm_machines.KINDS:
            context = arm_machines.Context(self._state, self._faults, self._buckets, self._clock)
            return await arm_machines.serve(request, caller, path, context)
        if len(parts) >= 10 and f"{parts[7]}/{parts[9]}".lower() == _FEDERATION:
            return await self._federation.serve(request, caller, path)
        if len(parts) >= 10 and f"{parts[6]}/{parts[7]}/{parts[9]}".lower() == arm_secrets.TYPE.lower():
            return await arm_secrets.serve(request, caller, path, self._state, self._clock)
        return await arm_resources.serve(request, caller, path, self._state, self._clock())

    async def _provider(self, request: Request, caller: Principal, path: str) -> Response:
        """Answer for what belongs to the subscription: all machines of a kind, all identities, deleted vaults."""
        parts = path.lower().split("/")
        kind = f"{parts[4]}/{parts[5]}"
        if kind in arm_machines.KINDS and len(parts) == 6:
            roles.require(self._state, caller, f"{arm_machines.KINDS[kind]}/read", path)
            machines = [machine for machine in self._state.machines.values() if machine.kind.lower() == kind]
            return JSONResponse({"value": [arm_machines.document(self._state, machine) for machine in machines]})
        return await arm_resources.serve_subscription(request, caller, path, self._state)


def _is_registration(parts: list[str]) -> bool:
    """Whether lower-case segments behind `/subscriptions/ID` are about resource providers themselves."""
    return len(parts) <= 5 or parts[5:] in (["register"], ["unregister"])


def _canonical_path(path: str) -> str:
    """Return a path without doubled slashes, with `resourceGroups` as Azure writes it in IDs, however it was sent."""
    single = re.sub("/+", "/", path).rstrip("/")
    return re.sub("^(/subscriptions/[^/]+)/resourcegroups(?=/|$)", r"\1/resourceGroups", single, flags=re.IGNORECASE)


def _no_such_path(path: str) -> answers.Refusal:
    return answers.arm(404, "NotFound", f"The lab's ARM has nothing at '{path}'.")
