"""A stand-in for ARM and Entra ID on one real socket, in plain HTTP: a custom cloud, with faults on request."""

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

import make
from podidentity.core.model.arm import Target
from serving import serving

LINKED = (
    "The client 'mic' with object id 'mic-object' has permission to perform action "
    "'Microsoft.Compute/virtualMachineScaleSets/write' on scope '{scope}'; however, it does not have permission to "
    "perform action(s) 'Microsoft.ManagedIdentity/userAssignedIdentities/assign/action' on the linked scope(s) "
    "'{linked}' (respectively) or the linked scope(s) are invalid."
)


class Fault(NamedTuple):
    """An error in place of the right response."""

    status: int
    code: str = ""
    message: str = ""
    headers: dict[str, str] = {}  # noqa: RUF012  # never changed

    def response(self) -> Response:
        """Return the error in ARM's form."""
        return JSONResponse({"error": {"code": self.code, "message": self.message}}, self.status, self.headers)


@dataclass
class Machine:
    """A VM or scale set; `gate`, when set, is what its operations wait for."""

    identities: dict[str, str] = field(default_factory=dict)
    system: bool = False
    state: str = "Succeeded"
    gate: asyncio.Event | None = None


@dataclass
class Operation:
    """A PATCH under way."""

    ends: asyncio.Task[None]
    error: Fault | None = None


class StandInArm:
    """Machines by the lower-case path of their ID; `log` has method, path and identities of each request to them."""

    def __init__(self) -> None:
        self.base = ""
        self.machines: dict[str, Machine] = {}
        self.refused_identities: set[str] = set()
        self.refusal_style = "named"
        self.patches: deque[Fault] = deque()
        self.gets: deque[Fault] = deque()
        self.operation_errors: deque[Fault] = deque()
        self.patch_seconds = 0.0
        self.retry_after = "0"
        self.log: list[tuple[float, str, str, dict[str, Any]]] = []
        self.tokens: list[dict[str, str]] = []
        self.secret = "first"
        self.revoked = False
        self._operations: dict[str, Operation] = {}

    def machine(self, target: Target) -> Machine:
        """Return a machine; it is made when first named."""
        return self.machines.setdefault(target.path.lower(), Machine())

    def calls(self, method: str, target: Target | None = None) -> list[dict[str, Any]]:
        """Return the changes requested of a machine, or of all; of a GET they are empty."""
        return [
            change
            for _, how, path, change in self.log
            if how == method and (target is None or path == target.path.lower())
        ]

    def names_on(self, target: Target) -> set[str]:
        """Return the names of the identities on a machine."""
        return {text.rsplit("/", 1)[1] for text in self.machine(target).identities}

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator["StandInArm"]:
        """Serve on loopback."""
        app = Starlette(routes=[Route("/{path:path}", self._serve, methods=["GET", "PATCH", "POST"])])
        async with serving(app) as port:
            self.base = f"http://localhost:{port}"
            yield self

    def write_config(self, folder: Path, **fields: object) -> tuple[str, dict[str, str]]:
        """Write azure.json and the file with the endpoints. Return its path and the environment."""
        environment = folder / "environment.json"
        environment.write_text(
            json.dumps({"name": "Lab", "resourceManagerEndpoint": self.base, "activeDirectoryEndpoint": self.base})
        )
        settings = {
            "cloud": "AzureStackCloud",
            "tenantId": "tenant",
            "aadClientId": "mic",
            "aadClientSecret": self.secret,
            "subscriptionId": make.SUBSCRIPTION,
            "resourceGroup": make.GROUP,
        }
        path = folder / "azure.json"
        path.write_text(json.dumps(settings | fields))
        return str(path), {"AZURE_ENVIRONMENT_FILEPATH": str(environment)}

    async def _serve(self, request: Request) -> Response:
        path = request.url.path
        if path.endswith("/oauth2/v2.0/token"):
            form = parse_qs((await request.body()).decode())
            return self._token({name: values[0] for name, values in form.items()})
        if request.headers.get("authorization") != f"Bearer token-{len(self.tokens)}" or self.revoked:
            self.revoked = False
            return Fault(401, "InvalidAuthenticationToken", "expired").response()
        if path.startswith("/operations/"):
            return self._operation(path.rsplit("/", 1)[1])
        change = (await request.json())["identity"] if request.method == "PATCH" else {}
        self.log.append((asyncio.get_running_loop().time(), request.method, path.lower(), change))
        machine = self.machines.get(path.lower())
        script = self.patches if request.method == "PATCH" else self.gets
        if script:
            return script.popleft().response()
        if machine is None:
            return Fault(404, "ResourceNotFound", f"The Resource '{path}' was not found.").response()
        if request.method == "GET":
            return JSONResponse(_document(machine))
        return self._patch(path, machine, change)

    def _token(self, form: dict[str, str]) -> Response:
        if form.get("client_secret") != self.secret:
            message = "AADSTS7000215: Invalid client secret provided."
            return JSONResponse({"error": "invalid_client", "error_description": message}, 401)
        self.tokens.append(form)
        return JSONResponse({"access_token": f"token-{len(self.tokens)}", "expires_in": 3599, "token_type": "Bearer"})

    def _patch(self, path: str, machine: Machine, change: dict[str, Any]) -> Response:
        requested: dict[str, Any] = change.get("userAssignedIdentities") or {}
        bad = [text for text in requested if requested[text] is not None and text.lower() in self.refused_identities]
        if bad and self.refusal_style == "named":
            linked = ",".join(bad)
            return Fault(403, "LinkedAuthorizationFailed", LINKED.format(scope=path, linked=linked)).response()
        if bad:
            return Fault(400, "FailedIdentityOperation", "Something is wrong with something.").response()

        async def end() -> None:
            await asyncio.sleep(self.patch_seconds)
            if machine.gate:
                await machine.gate.wait()
            if error is None:
                _apply(machine, change)

        error = self.operation_errors.popleft() if self.operation_errors else None
        name = str(len(self._operations))
        self._operations[name] = Operation(asyncio.create_task(end()), error)
        result = Machine(dict(machine.identities), machine.system)
        _apply(result, change)
        document = _document(result) | {"properties": {"provisioningState": "Updating"}}
        headers = {"Azure-AsyncOperation": f"{self.base}/operations/{name}", "Retry-After": self.retry_after}
        return JSONResponse(document, headers=headers)

    def _operation(self, name: str) -> Response:
        operation = self._operations[name]
        if not operation.ends.done():
            return JSONResponse({"status": "InProgress"}, headers={"Retry-After": self.retry_after})
        if operation.error:
            error = {"code": operation.error.code, "message": operation.error.message}
            return JSONResponse({"status": "Failed", "error": error})
        return JSONResponse({"status": "Succeeded"})


def _apply(machine: Machine, change: dict[str, Any]) -> None:
    kind, requested = str(change["type"]).lower(), change.get("userAssignedIdentities")
    if "userassigned" not in kind:
        machine.identities.clear()
    for text, value in (requested or {}).items():
        if value is None:
            machine.identities.pop(text.lower(), None)
        else:
            machine.identities[text.lower()] = f"client-of-{text.lower().rsplit('/', 1)[1]}"
    machine.system = "systemassigned" in kind


def _document(machine: Machine) -> dict[str, Any]:
    kinds = [*(["SystemAssigned"] if machine.system else []), *(["UserAssigned"] if machine.identities else [])]
    document: dict[str, Any] = {"properties": {"provisioningState": machine.state}}
    if kinds:
        identities = {
            text: {"clientId": client_id, "principalId": "p"} for text, client_id in machine.identities.items()
        }
        document["identity"] = {"type": ", ".join(kinds), "userAssignedIdentities": identities}
    return document
