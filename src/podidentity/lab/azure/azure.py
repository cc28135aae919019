"""The whole Azure of a lab: puts the services together and sends each request to the one its host name means."""

import ssl
import time
from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from podidentity.lab.azure import admin, answers, arm, changes, entra, graph, keyvault, saving
from podidentity.lab.azure.faults import Faults
from podidentity.lab.azure.imds import Imds
from podidentity.lab.azure.issuers import Issuers
from podidentity.lab.azure.log import Log, record
from podidentity.lab.azure.roles import ROLES
from podidentity.lab.azure.state import (
    AzureSettings,
    Json,
    Machine,
    Principal,
    RoleAssignment,
    ServicePrincipal,
    State,
    new_id,
)
from podidentity.lab.azure.tls import Authority

Service = Callable[[Request], Awaitable[Response]]


class Azure:
    """One tenant with one subscription."""

    def __init__(
        self, settings: AzureSettings, clock: Callable[[], float] = time.time, state: State | None = None
    ) -> None:
        self.state = state or State(settings)
        self.settings = self.state.settings
        self.faults = Faults()
        self.log = Log()
        self._clock = clock
        self._authority = Authority(self.state.keys)
        self._issuers = Issuers(lambda: self.ca_pem)
        self._entra = entra.Entra(self.state, self._issuers, self.faults, clock)
        management = arm.Arm(self.state, self._entra, self.faults, clock)
        self._services: dict[str, tuple[str, Service]] = {
            **dict.fromkeys(entra.HOSTS, ("entra", self._entra.serve)),
            arm.HOST: ("arm", management.serve),
            graph.HOST: ("graph", graph.Graph(self.state, self._entra, clock).serve),
        }
        self._vaults = keyvault.KeyVault(self.state, self._entra, self.faults, clock)
        if state is None:
            self._found()

    @classmethod
    def restored(cls, text: str, clock: Callable[[], float] = time.time) -> "Azure":
        """An Azure as it was when `saved` was called: tenant, keys, resources, secrets. Raises `LabError`."""
        state = saving.parse(text)
        return cls(state.settings, clock, state)

    def saved(self) -> str:
        """Everything that `restored` needs, private keys and secrets included."""
        return saving.render(self.state)

    @property
    def ca_pem(self) -> bytes:
        """The lab's certificate authority."""
        return self._authority.pem

    @property
    def app(self) -> ASGIApp:
        """All public hosts."""
        return self._application(self._by_host)

    @property
    def admin(self) -> ASGIApp:
        """Faults, log and state: for the lab's user, never for what runs in the lab."""
        return admin.application(self.state, self.faults, self.log)

    def tls_context(self) -> ssl.SSLContext:
        """A server's context with a certificate for every name."""
        return self._authority.context(arm.HOST)

    def serves(self, name: str) -> bool:
        """Say whether a DNS name is one of Azure's."""
        plain = name.rstrip(".").lower()
        return plain in self._services or plain.endswith(keyvault.SUFFIX)

    def publish_issuer(self, issuer: str, keys: Callable[[], Json]) -> None:
        """Let federated credentials name an issuer of this process, a cluster's; `keys` gives its key set."""
        self._issuers.publish(issuer, keys)

    def add_virtual_machine(self, name: str) -> str:
        """Add a VM to the node resource group, unless it is there; its ARM ID."""
        return self._add("virtualMachines", name).id

    def add_scale_set(self, name: str, instances: int) -> tuple[str, ...]:
        """Add a scale set to the node resource group, unless it is there; the ARM IDs of its instances."""
        machine = self._add("virtualMachineScaleSets", name)
        return tuple(f"{machine.id}/virtualMachines/{number}" for number in range(instances))

    def imds(self, machine_id: str) -> ASGIApp:
        """What a VM, or an instance of a scale set, sees as its metadata service."""
        service = Imds(machine_id, self.state, self._entra, self.faults, self._clock)
        return self._application(lambda _host: ("imds", service.serve))

    def _add(self, kind: str, name: str) -> Machine:
        machine = Machine(
            f"{self._node_group}/providers/Microsoft.Compute/{kind}/{name}",
            f"Microsoft.Compute/{kind}",
            self.settings.location,
        )
        return self.state.machines.setdefault(machine.id.lower(), machine)

    @property
    def _node_group(self) -> str:
        return f"/subscriptions/{self.settings.subscription_id}/resourceGroups/{self.settings.node_resource_group}"

    def _found(self) -> None:
        """The node resource group, the owner of the subscription, and the cluster's own principal."""
        self.state.groups[self._node_group.lower()] = arm.group(self._node_group, self.settings.location)
        subscription = f"/subscriptions/{self.settings.subscription_id}"
        for principal, role, scope in (
            (self.settings.owner, "Owner", subscription),
            (self.settings.cluster, "Contributor", self._node_group),
        ):
            self._register(principal)
            role_id = next(key for key, one in ROLES.items() if one.name == role)
            path = f"{scope}/providers/Microsoft.Authorization/roleAssignments/{new_id()}"
            self.state.roles[path.lower()] = RoleAssignment(path, scope, principal.object_id, role_id)

    def _register(self, one: ServicePrincipal) -> None:
        made = Principal(one.object_id, one.client_id, one.name, {new_id(): one.secret}, application_id=new_id())
        self.state.principals[one.object_id] = made

    def _by_host(self, host: str) -> tuple[str, Service]:
        name = host.split(":", maxsplit=1)[0].lower()
        if name in self._services:
            return self._services[name]
        if name.endswith(keyvault.SUFFIX):
            return "keyvault", self._vaults.serve
        raise answers.arm(404, "HostNotFound", f"The lab's Azure has no host '{host}'.")

    def _application(self, route: Callable[[str], tuple[str, Service]]) -> ASGIApp:
        async def application(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                return
            response = await self._answer(Request(scope, receive), route)
            await response(scope, receive, send)

        return application

    async def _answer(self, request: Request, route: Callable[[str], tuple[str, Service]]) -> Response:
        request.state.who = request.state.resource = ""
        name = ""
        changes.settle(self.state, self._clock())
        try:
            name, service = route(request.headers.get("host", ""))
            response = await service(request)
        except answers.Refusal as refusal:
            response = refusal.response
        except (ValueError, KeyError, TypeError) as error:  # a body that is not what the operation takes
            message = f"The request content was invalid: {type(error).__name__} {error}"
            response = JSONResponse({"error": {"code": "InvalidRequestContent", "message": message}}, 400)
        self.log.add(record(self.log, self.state, self._clock(), name, request, response))
        return response
