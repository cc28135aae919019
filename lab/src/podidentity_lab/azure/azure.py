"""The whole Azure of a lab: puts the services together and sends each request to a service by its host name."""

import ssl
import time
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from podidentity_lab.azure import (
    admin,
    answers,
    arm,
    arm_groups,
    blob_storage,
    bodies,
    changes,
    entra,
    graph,
    keyvault,
    local_identity,
    saving,
)
from podidentity_lab.azure.faults import Faults
from podidentity_lab.azure.imds import Imds
from podidentity_lab.azure.issuers import Issuers
from podidentity_lab.azure.log import Log, record
from podidentity_lab.azure.roles import ROLES
from podidentity_lab.azure.state import (
    AzureSettings,
    Json,
    Machine,
    Principal,
    RoleAssignment,
    ServicePrincipal,
    State,
    new_id,
)
from podidentity_lab.azure.tls import Authority

Service = Callable[[Request], Awaitable[Response]]
_LOOPBACK = ("127.0.0.1", "localhost")


class Azure:
    """One tenant with one subscription, and the services in front of it."""

    def __init__(
        self, settings: AzureSettings, clock: Callable[[], float] = time.time, state: State | None = None
    ) -> None:
        self.state = state or State(settings)
        self.settings = self.state.settings
        self.faults = Faults()
        self.log = Log()
        self._clock = clock
        self._authority = Authority(self.state.keys)
        self._issuers = Issuers(lambda: self.ca_pem, self.faults, clock)
        self._entra = entra.Entra(self.state, self._issuers, self.faults, clock)
        management = arm.Arm(self.state, self._entra, self.faults, clock)
        self._services: dict[str, tuple[str, Service]] = {
            **dict.fromkeys(entra.HOSTS, ("entra", self._entra.serve)),
            arm.HOST: ("arm", management.serve),
            graph.HOST: ("graph", graph.Graph(self.state, self._entra, self.faults, clock).serve),
        }
        self._local = local_identity.LocalIdentities(self.state, self._entra, self.faults, clock)
        self._vaults = keyvault.KeyVault(self.state, self._entra, self.faults, clock)
        self._blobs = blob_storage.BlobStorage(self.state, self._entra, self.faults, clock)
        if state is None:
            self._create_foundations()

    @classmethod
    def restore(cls, text: str, clock: Callable[[], float] = time.time) -> "Azure":
        """Return an Azure as it was when `save` wrote `text`: tenant, keys, resources, secrets. Raises `LabError`."""
        state = saving.parse(text)
        return cls(state.settings, clock, state)

    def save(self) -> str:
        """Return everything that `restore` needs as text, private keys and secrets included."""
        return saving.render(self.state)

    @property
    def ca_pem(self) -> bytes:
        """The certificate of the lab's authority, in PEM."""
        return self._authority.pem

    @property
    def java_trust_store(self) -> bytes:
        """The same certificate in Java's own form."""
        return self._authority.java_trust_store

    @property
    def app(self) -> ASGIApp:
        """Serves all public hosts of Azure."""
        return self._application(self._by_host)

    @property
    def admin(self) -> ASGIApp:
        """Faults, log and state: for the lab's user, never for what runs in the lab."""
        return admin.application(self.state, self.faults, self.log, self._local)

    @property
    def local(self) -> ASGIApp:
        """Serves processes of the host: managed identities to whoever knows their secrets, and pages to sign in."""
        return self._application(self._by_local_path)

    def serve_sign_in_at(self, base: str) -> None:
        """Send users who sign in with a browser to `base`, the URL of where `local` is served."""
        self._entra.sign_ins.base = base

    def tls_context(self) -> ssl.SSLContext:
        """Return a server's context, with a certificate for every name."""
        return self._authority.context(arm.HOST)

    def serves(self, name: str) -> bool:
        """Whether a DNS name is one of Azure's."""
        plain = name.rstrip(".").lower()
        return plain in self._services or plain.endswith((keyvault.SUFFIX, blob_storage.SUFFIX))

    def publish_issuer(self, issuer: str, keys: Callable[[], Json]) -> None:
        """Let federated credentials name an issuer in this process, a cluster's; `keys` returns its key set."""
        self._issuers.publish(issuer, keys)

    def add_virtual_machine(self, name: str) -> str:
        """Add a VM to the node resource group, unless it is there, and return its ARM ID."""
        return self._add("virtualMachines", name).id

    def add_scale_set(self, name: str, instances: int) -> tuple[str, ...]:
        """Add a scale set to the node resource group, unless it is there, and return the ARM IDs of its instances."""
        machine = self._add("virtualMachineScaleSets", name)
        return tuple(f"{machine.id}/virtualMachines/{number}" for number in range(instances))

    def imds(self, machine_id: str) -> ASGIApp:
        """Return the metadata service of a VM, or of an instance of a scale set."""
        service = Imds(machine_id, self.state, self._entra, self.faults, self._clock)
        return self._application(lambda _request: ("imds", service.serve))

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

    def _create_foundations(self) -> None:
        """Create the node resource group, the owner of the subscription, and the cluster's own principal."""
        self.state.groups[self._node_group.lower()] = arm_groups.group(self._node_group, self.settings.location)
        subscription = f"/subscriptions/{self.settings.subscription_id}"
        for principal, role, scope in (
            (self.settings.owner, "Owner", subscription),
            (self.settings.cluster, "Contributor", self._node_group),
        ):
            self._register(principal)
            role_id = next(key for key, candidate in ROLES.items() if candidate.name == role)
            path = f"{scope}/providers/Microsoft.Authorization/roleAssignments/{new_id()}"
            self.state.roles[path.lower()] = RoleAssignment(path, scope, principal.object_id, role_id)

    def _register(self, service_principal: ServicePrincipal) -> None:
        principal = Principal(
            service_principal.object_id,
            service_principal.client_id,
            service_principal.name,
            {new_id(): service_principal.secret},
            application_id=new_id(),
        )
        self.state.principals[service_principal.object_id] = principal

    def _by_host(self, request: Request) -> tuple[str, Service]:
        host = request.headers.get("host", "")
        name = host.split(":", maxsplit=1)[0].lower()
        if name in self._services:
            return self._services[name]
        if name.endswith(keyvault.SUFFIX):
            return "keyvault", self._vaults.serve
        if name.endswith(blob_storage.SUFFIX):
            return "blob", self._blobs.serve
        raise answers.arm(404, "HostNotFound", f"The lab's Azure has no host '{host}'.")

    def _by_local_path(self, request: Request) -> tuple[str, Service]:
        if request.url.path.rstrip("/").lower() in (local_identity.APP_SERVICE_PATH, local_identity.ARC_PATH):
            return "imds", self._local.serve
        host = request.headers.get("host", "")
        if urlsplit(f"//{host}").hostname not in _LOOPBACK:  # a name of another page's that leads here
            raise answers.arm(404, "HostNotFound", f"This is not '{host}': ask for 127.0.0.1.")
        return "entra", self._entra.sign_in

    def _application(self, route: Callable[[Request], tuple[str, Service]]) -> ASGIApp:
        async def application(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                return
            response = await self._answer(bodies.BoundedRequest(scope, receive), route)
            await response(scope, receive, send)

        return application

    async def _answer(self, request: Request, route: Callable[[Request], tuple[str, Service]]) -> Response:
        request.state.client_id = request.state.resource = request.state.name = ""
        name = ""
        changes.settle(self.state, self._clock())
        try:
            name, service = route(request)
            response = await service(request)
        except answers.Refusal as refusal:
            response = refusal.response
        except bodies.TooLargeError as error:
            response = answers.arm(413, "RequestEntityTooLarge", str(error)).response
        except answers.MALFORMED as error:
            response = answers.malformed(error).response
        except ClientDisconnect:  # nobody reads the answer
            return Response(status_code=400)
        self.log.add(record(self.log, self.state, self._clock(), name, request, response))
        return response
