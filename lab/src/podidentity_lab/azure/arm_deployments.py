"""Deployments of ARM templates: at a resource group's scope and at the subscription's, nested ones included.

A deployment sends what it makes as requests of its caller's, one after the other, so that roles, names and conflicts
are those of each resource. It has ended when its PUT is answered; clients that poll its operation see the end at once.
Form: learn.microsoft.com/rest/api/resources/deployments.
"""

import datetime as dt
import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from podidentity_lab.azure import answers, arm_groups, arm_subscriptions, bodies, providers, roles
from podidentity_lab.azure.deployment_run import Run, preflight
from podidentity_lab.azure.state import Deployment, Json, Principal, State, new_id
from podidentity_lab.azure.templates import jsonc, planning
from podidentity_lab.azure.templates.budget import Budget, TemplateError

TYPE = planning.DEPLOYMENT_TYPE
PATH = re.compile(
    r"(/subscriptions/[^/]+(?:/resourceGroups/[^/]+)?)(?:/providers/Microsoft\.Resources)?/deployments(?:/([^/]+)(/.*)?)?",
    re.IGNORECASE,
)
"""The path of one or all deployments: scope, name, what follows. azure-cli asks for operations without the provider."""
Send = Callable[[str, str, str, Json | None], Awaitable[Response]]
_LONGEST_REASON = 300  # characters
_MOST_LEVELS = 10  # of deployments in deployments
_NAME = re.compile(r"[\w.()-]{1,64}")


class Deployments:
    """All deployments of the subscription. `route` answers an ARM request of a caller who is known already."""

    def __init__(
        self,
        state: State,
        route: Callable[[Request, Principal, str], Awaitable[Response]],
        clock: Callable[[], float],
    ) -> None:
        self._state = state
        self._route = route
        self._clock = clock

    async def serve(self, request: Request, caller: Principal, path: str) -> Response:
        """Answer one request for a deployment, its operations, or all deployments of a scope."""
        scope, name, tail = PATH.sub(r"\1", path), PATH.sub(r"\2", path), PATH.sub(r"\3", path).lower()
        if "/resourcegroups/" in scope.lower():
            arm_groups.require(self._state, scope)
        resource_id = f"{scope}/providers/{TYPE}/{name}"
        action = _action(request.method, tail)
        roles.require(self._state, caller, f"{TYPE}/{action}", resource_id if name else scope)
        if request.method in {"PUT", "POST"} and action in {"write", "validate/action", "whatIf/action"}:
            return await self._deploy(request, caller, resource_id, scope, action)
        if not name:
            return JSONResponse({"value": self._documents_at(scope)})
        return self._answer_for(request, resource_id, tail)

    def _answer_for(self, request: Request, resource_id: str, tail: str) -> Response:
        deployment = self._state.deployments.get(resource_id.lower())
        if request.method == "HEAD":
            return Response(status_code=404 if deployment is None else 204)
        if deployment is None:
            name = resource_id.rsplit("/", 1)[1]
            raise answers.arm(404, "DeploymentNotFound", f"Deployment '{name}' could not be found.")
        if request.method == "DELETE" and not tail:
            del self._state.deployments[resource_id.lower()]
            return Response(status_code=204)
        return JSONResponse(_part(deployment, request.method, tail))

    async def _deploy(self, request: Request, caller: Principal, resource_id: str, scope: str, action: str) -> Response:
        """Check a template, and deploy it unless it is only to be validated. Refuses what is wrong with it with 400."""
        body = jsonc.loads((await request.body()).decode("utf-8-sig"))
        bodies.check_fields(body)
        name = resource_id.rsplit("/", 1)[1]
        if not _NAME.fullmatch(name):
            message = f"The deployment name '{name}' is not valid: 1 to 64 letters, digits, '-', '.', '_', '(' and ')'."
            raise answers.arm(400, "InvalidDeployment", message)
        properties = _checked(body, scope)
        budget = getattr(request.state, "budget", None) or Budget()
        try:
            place = self._place(name, scope, body, budget)
            content = planning.plan(properties["template"], properties.get("parameters") or {}, place)
            preflight(self._state, caller, content)
        except (TemplateError, *answers.MALFORMED) as error:
            message = f"Deployment template validation failed: '{_reason(error)}'"
            raise answers.arm(400, "InvalidTemplate", message) from None
        document = self._document(resource_id, body, content)
        if action == "validate/action":
            document["properties"]["validatedResources"] = [{"id": entry.id} for entry in _deployed(content)]
            return JSONResponse(document)
        run = Run(self._state, caller, content, self._send(request, caller, budget))
        if action == "whatIf/action":
            return JSONResponse({"status": "Succeeded", "properties": {"changes": run.changes()}})
        return await self._carry_out(request, run, document, properties, scope)

    async def _carry_out(self, request: Request, run: Run, document: Json, properties: Json, scope: str) -> Response:
        key = document["id"].lower()
        new = key not in self._state.deployments
        deployment = Deployment(document, [], properties["template"])
        self._state.deployments[key] = deployment
        outcome = document["properties"]
        try:
            await run.deploy(str(document["id"]), self._now)
            outcome["outputs"] = run.outputs()
            outcome["outputResources"] = [{"id": resource_id} for resource_id in run.deployed_ids]
            if outcome["mode"] == "Complete":
                await run.delete_all_others(scope)
        except answers.Refusal as refusal:  # the caller may not read what the template refers to
            outcome |= {"provisioningState": "Failed", "error": refusal.error}
        except (TemplateError, *answers.MALFORMED) as error:
            outcome |= {"provisioningState": "Failed", "error": {"code": "InvalidTemplate", "message": _reason(error)}}
        if run.error is not None:
            outcome |= {"provisioningState": "Failed", "error": run.error}
        deployment.operations = run.operations
        address = f"https://{request.headers.get('host', '')}{quote(document['id'])}/operationStatuses/{new_id()}"
        headers = {"Azure-AsyncOperation": f"{address}?api-version=2024-11-01", "Retry-After": "1"}
        response_body = {**document, "properties": {**outcome, "provisioningState": "Accepted"}}
        return JSONResponse(response_body, 201 if new else 200, headers)

    def _send(self, request: Request, caller: Principal, budget: Budget) -> Send:
        """Return what sends further requests as `caller`: ARM's own answer to each, refusals included."""
        level = getattr(request.state, "level", 0) + 1

        async def send(method: str, path: str, version: str, body: Json | None) -> Response:
            content = json.dumps(body or {}).encode()
            budget.charge_bytes(len(content))
            if level > _MOST_LEVELS:
                message = f"Deployments are nested more than {_MOST_LEVELS} levels deep."
                return answers.arm(400, "InvalidTemplate", message).response

            async def receive() -> MutableMapping[str, Any]:
                return {"type": "http.request", "body": content, "more_body": False}

            query = f"api-version={version}".encode()
            scope = {**request.scope, "method": method, "path": path, "raw_path": path.encode(), "query_string": query}
            scope["state"] = {"level": level, "budget": budget}
            inner = bodies.BoundedRequest(scope, receive)
            try:
                return await self._route(inner, caller, path)
            except answers.Refusal as refusal:
                return refusal.response
            except answers.MALFORMED as error:
                return answers.malformed(error).response

        return send

    def _place(self, name: str, scope: str, body: Json, budget: Budget) -> planning.Place:
        subscription = arm_subscriptions.subscription(self._state)
        properties = {"mode": body["properties"].get("mode", "Incremental"), "provisioningState": "Accepted"}
        values: dict[str, Json] = {
            "subscription": subscription,
            "tenant": arm_subscriptions.tenant(self._state),
            "deployment": {"name": name, "location": body.get("location", ""), "properties": properties},
            "environment": arm_subscriptions.environment(),
        }
        if scope.lower() in self._state.groups:
            values["resourcegroup"] = self._state.groups[scope.lower()]
        now = dt.datetime.fromtimestamp(self._clock(), dt.UTC)
        defaults = {
            "utcnow": lambda arguments: _utc_text(now, arguments[0] if arguments else ""),
            "newguid": lambda _arguments: new_id(),
        }
        return planning.Place(self._state.settings.subscription_id, scope, values, defaults, budget)

    def _document(self, resource_id: str, body: Json, content: planning.Plan) -> Json:
        properties = {
            "mode": str(body["properties"].get("mode") or "Incremental").capitalize(),
            "provisioningState": "Succeeded",
            "timestamp": self._now(),
            "duration": "PT0S",
            "correlationId": new_id(),
            "parameters": content.parameters,
            "outputs": {},
            "providers": _providers(content),
            "dependencies": [],
        }
        location = {"location": body["location"]} if body.get("location") else {}
        name = resource_id.rsplit("/", 1)[1]
        return {"id": resource_id, "name": name, "type": TYPE, **location, "properties": properties}

    def _documents_at(self, scope: str) -> list[Json]:
        start = f"{scope}/providers/{TYPE}/".lower()
        return [entry.document for key, entry in self._state.deployments.items() if key.startswith(start)]

    def _now(self) -> str:
        return dt.datetime.fromtimestamp(self._clock(), dt.UTC).isoformat()


def _reason(error: Exception) -> str:
    """Return a sentence about what is wrong with a template."""
    if isinstance(error, TemplateError):
        return str(error)
    if isinstance(error, RecursionError):
        return "The template is not valid: its expressions are nested too deeply."
    cause = type(error).__name__ if isinstance(error, ValueError) else str(error)  # those quote what they read
    cause = f"there is no {error}" if isinstance(error, KeyError) else cause[:_LONGEST_REASON]
    return f"The template is not valid: one of its values has another form than it must have ({cause})."


def _part(deployment: Deployment, method: str, tail: str) -> Json:
    """Return what `tail` names of a deployment: itself for "", its template, operations, or how far it is."""
    properties = deployment.document["properties"]
    match method, tail.split("/")[1:]:
        case "GET", []:
            return deployment.document
        case "POST", ["exporttemplate"]:
            return {"template": deployment.template}
        case "GET", ["operations"]:
            return {"value": deployment.operations}
        case "GET", ["operations", name]:
            for operation in deployment.operations:
                if operation["operationId"].lower() == name:
                    return operation
        case "GET", ["operationstatuses", _]:
            error = {"error": properties["error"]} if "error" in properties else {}
            return {"status": properties["provisioningState"], **error}
        case "POST", ["cancel"]:
            raise answers.arm(409, "DeploymentCannotBeCancelled", "The deployment has ended, and cannot be cancelled.")
    raise answers.arm(404, "NotFound", f"The lab has no '{tail}' of a deployment for {method}.")


def _action(method: str, tail: str) -> str:
    """Return the action of a request, behind the type of deployments."""
    if method == "POST":
        names = {"/validate": "validate", "/whatif": "whatIf", "/exporttemplate": "exportTemplate", "/cancel": "cancel"}
        return f"{names.get(tail, 'write')}/action" if tail in names else "write"
    return {"PUT": "write", "DELETE": "delete"}.get(method, "read")


def _checked(body: Json, scope: str) -> Json:
    """Return a deployment's properties. Refuses with 400 a body without a template or, at the subscription, a place."""
    properties: Json = body.get("properties") or {}
    if not isinstance(properties.get("template"), dict):
        message = "The lab deploys a template that stands in the request: give 'template', not 'templateLink'."
        raise answers.arm(400, "InvalidDeployment", message)
    if "/resourcegroups/" not in scope.lower() and not body.get("location"):
        message = "The 'location' property is required for a deployment at the scope of a subscription."
        raise answers.arm(400, "LocationRequired", message)
    return properties


def _deployed(content: planning.Plan) -> list[planning.Resource]:
    return [resource for resource in content.resources if resource.is_deployed]


def _providers(content: planning.Plan) -> list[Json]:
    """Return the types that a template deploys, by namespace."""
    types: dict[str, list[Json]] = {}
    for resource in _deployed(content):
        namespace, _, kind = resource.kind.partition("/")
        entries = types.setdefault(providers.namespace(namespace), [])
        if kind not in [entry["resourceType"] for entry in entries]:
            entries.append({"resourceType": kind, "locations": [None]})
    return [{"namespace": namespace, "resourceTypes": entries} for namespace, entries in types.items()]


def _utc_text(now: dt.datetime, form: str) -> str:
    """Return the time in one of the .NET formats that templates use: `yyyyMMddTHHmmssZ` (the default) or `u`-like."""
    forms = {"": "%Y%m%dT%H%M%SZ", "u": "%Y-%m-%d %H:%M:%SZ", "d": "%m/%d/%Y", "yyyy-MM-dd": "%Y-%m-%d"}
    if form not in forms:
        raise TemplateError(
            f"The format '{form}' of utcNow is not known to the lab: leave it out, or use u or yyyy-MM-dd."
        )
    return now.strftime(forms[form])
