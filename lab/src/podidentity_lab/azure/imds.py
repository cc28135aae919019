"""The Instance Metadata Service of one machine: tokens of the identities that this machine carries, and no others.

As strict as the real one where it matters: `Metadata: true`, no X-Forwarded-For, no parameter twice, 20 token requests
a second and 5 at once (learn.microsoft.com/entra/identity/managed-identities-azure-resources/how-to-use-vm-token).
"""

from collections import deque
from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from podidentity_lab.azure import answers
from podidentity_lab.azure.entra import Entra
from podidentity_lab.azure.faults import Faults
from podidentity_lab.azure.managed_tokens import ManagedTokens
from podidentity_lab.azure.state import Json, Machine, Principal, State

REQUESTS_PER_SECOND = 20
REQUESTS_AT_ONCE = 5
MULTIPLE_IDENTITIES = (
    "Multiple user assigned identities exist, please specify the clientId / resourceId of the identity in the token "
    "request"
)
VERSIONS = ("2018-02-01", "2019-08-01", "2020-06-01", "2021-02-01", "2023-07-01")
_SELECTORS = ("client_id", "object_id", "msi_res_id", "mi_res_id")


class Imds:
    """The service that one VM, or one instance of a scale set, reaches at 169.254.169.254."""

    def __init__(self, machine_id: str, state: State, entra: Entra, faults: Faults, clock: Callable[[], float]) -> None:
        self._machine_id = machine_id
        self._state = state
        self._tokens = ManagedTokens(state, entra, faults, clock)
        self._clock = clock
        self._recent: deque[float] = deque()
        self._running = 0

    @property
    def _machine(self) -> Machine:
        return self._state.machines["/".join(self._machine_id.lower().split("/")[:9])]

    async def serve(self, request: Request) -> Response:
        """Answer one request."""
        _check(request)
        path = request.url.path.rstrip("/").lower()
        if path == "/metadata/versions":
            return JSONResponse({"apiVersions": list(VERSIONS)})
        if path == "/metadata/identity/oauth2/token":
            return await self._token(request)
        _check_version(request)
        if path == "/metadata/instance":
            return JSONResponse({"compute": self._compute()})
        raise answers.imds(404, "Not found", "not_found")

    def _compute(self) -> Json:
        parts = self._machine_id.split("/")
        scale_set = parts[8] if len(parts) > 9 else ""
        return {
            "azEnvironment": "AzurePublicCloud",
            "location": self._machine.location,
            "name": f"{scale_set}_{parts[10]}" if scale_set else parts[8],
            "resourceGroupName": parts[4],
            "resourceId": self._machine_id,
            "subscriptionId": parts[2],
            "vmScaleSetName": scale_set,
        }

    async def _token(self, request: Request) -> Response:
        request.state.resource = request.query_params.get("resource", "")
        self._tokens.fail_on_request()
        self._throttle()
        self._running += 1
        try:
            await self._tokens.wait()
            _check_version(request)
            return JSONResponse(self._answer(request))
        finally:
            self._running -= 1

    def _throttle(self) -> None:
        now = self._clock()
        while self._recent and self._recent[0] <= now - 1:
            self._recent.popleft()
        if len(self._recent) >= REQUESTS_PER_SECOND or self._running >= REQUESTS_AT_ONCE:
            raise answers.imds(429, "Too many requests", "too_many_requests")
        self._recent.append(now)

    def _answer(self, request: Request) -> Json:
        if not request.state.resource:
            raise answers.imds(400, "Required query variable 'resource' is missing")
        return self._tokens.answer(request, self._select(request))

    def _select(self, request: Request) -> Principal:
        """Return the identity that the request names; without a name the system-assigned one, else the only one."""
        principals = [
            principal
            for text in self._machine.identities.values()
            if (principal := self._state.identity_principal(text))
        ]
        selectors = {name: value for name in _SELECTORS if (value := request.query_params.get(name))}
        if len(selectors) > 1:
            raise answers.imds(400, "Only one identity can be named")
        for name, value in selectors.items():
            field = {"client_id": "client_id", "object_id": "object_id"}.get(name, "resource_id")
            principals = [principal for principal in principals if getattr(principal, field).lower() == value.lower()]
        system = self._state.principals.get(self._machine.system_principal)
        if not selectors and system is not None:
            return system
        if not selectors and len(principals) > 1:
            raise answers.imds(400, MULTIPLE_IDENTITIES)
        if not principals:
            raise answers.imds(400, "Identity not found")
        return principals[0]


def _check_version(request: Request) -> None:
    if "api-version" not in request.query_params:
        versions = ", ".join(VERSIONS)
        message = f"Bad request. api-version was not specified in the request. For more information refer to {versions}"
        raise answers.imds(400, message)


def _check(request: Request) -> None:
    if request.method != "GET":
        raise answers.imds(405, "Method not allowed", "method_not_allowed")
    if request.headers.getlist("metadata") not in (["true"], ["True"]):
        raise answers.imds(400, "Required metadata header not specified")
    if "x-forwarded-for" in request.headers:
        raise answers.imds(400, "X-Forwarded-For is not allowed")
    names = [name for name, _ in request.query_params.multi_items()]
    if len(names) != len(set(names)):
        raise answers.imds(400, "A query parameter is given more than once")
