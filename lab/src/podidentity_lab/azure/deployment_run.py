"""One run of a deployment: checks before anything is made, then makes one resource after the other."""

import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from starlette.responses import Response

from podidentity_lab.azure import answers, arm_resources, providers, roles
from podidentity_lab.azure.state import Json, Principal, State, new_id
from podidentity_lab.azure.templates import planning
from podidentity_lab.azure.templates.budget import TemplateError
from podidentity_lab.azure.templates.expressions import member

Send = Callable[[str, str, str, Json | None], Awaitable[Response]]
_UNITS_OF_A_REQUEST = 500  # of a template's budget: nested deployments make 6000 resources at most
_UNWRITTEN = frozenset({"microsoft.authorization/roledefinitions", "microsoft.resources/subscriptions"})
_UNWRITTEN |= {"microsoft.keyvault/deletedvaults"}


def preflight(state: State, caller: Principal, content: planning.Plan) -> None:
    """Refuse types that the lab does not have (`TemplateError`) and resources that the caller may not write (403)."""
    types = {f"{namespace}/{kind.name}".lower() for namespace, kinds in providers.TYPES.items() for kind in kinds}
    for resource in content.resources:
        kind = _kind(resource.id)
        if kind.lower() not in types - _UNWRITTEN:
            message = f"The resource type '{resource.kind}' of '{resource.name}' is not one that the lab can deploy."
            raise TemplateError(message)
        action = f"{_ACTION_TYPES.get(kind.lower(), kind)}/write"
        if resource.is_deployed and not roles.is_allowed(state, caller, action, resource.id):
            message = (
                "Deployment failed with multiple errors: 'Authorization failed for template resource "
                f"'{resource.name}' of type '{resource.kind}'. The client '{caller.label}' with object id "
                f"'{caller.object_id}' does not have permission to perform action '{action}' at scope "
                f"'{resource.id}'.'"
            )
            raise answers.arm(403, "InvalidTemplateDeployment", message)


_ACTION_TYPES = {"microsoft.resources/resourcegroups": "Microsoft.Resources/subscriptions/resourceGroups"}


def _kind(resource_id: str) -> str:
    """Return the type of a resource by its ID: that behind the last `/providers/`."""
    lower_id = resource_id.lower()
    if "/providers/" not in lower_id:
        return "Microsoft.Resources/resourceGroups"
    namespace, *segments = resource_id[lower_id.rindex("/providers/") + len("/providers/") :].split("/")
    return "/".join((namespace, *segments[::2]))


class Run:
    """What one deployment does. `error` is set when a resource was refused: nothing is made after that one."""

    def __init__(self, state: State, caller: Principal, content: planning.Plan, send: Send) -> None:
        self._state = state
        self._caller = caller
        self._content = content
        self._send = send
        self._documents: dict[str, Json] = {}
        self.operations: list[Json] = []
        self.error: Json | None = None

    @property
    def deployed_ids(self) -> list[str]:
        """IDs of all resources that were made, in order."""
        return [str(document.get("id", key)) for key, document in self._documents.items()]

    async def deploy(self, deployment_id: str, now: Callable[[], str]) -> None:
        """Make all resources, until one is refused. Raises `TemplateError`."""
        for resource in self._content.resources:
            if not resource.is_deployed:
                continue
            resource.scope.budget.spend(_UNITS_OF_A_REQUEST)
            response = await self._send("PUT", resource.id, resource.version, planning.body(resource, self._reference))
            answer: Json = json.loads(bytes(response.body) or b"{}")
            if response.status_code < 300 and _kind(resource.id).lower() == planning.DEPLOYMENT_TYPE.lower():
                answer = self._state.deployments[resource.id.lower()].document
            failure = _failure(response.status_code, answer)
            self.operations.append(_operation(deployment_id, resource, response.status_code, failure, now()))
            if failure is not None:
                self.error = _deployment_error(deployment_id, failure)
                return
            self._documents[resource.id.lower()] = answer

    def outputs(self) -> Json:
        """Return the template's outputs; none after a refusal. Raises `TemplateError`."""
        return {} if self.error else planning.outputs(self._content, self._reference)

    def changes(self) -> list[Json]:
        """Return what a deployment would do, as what-if tells it: whether each resource is new."""
        return [
            {
                "resourceId": resource.id,
                "changeType": "Create" if arm_resources.document(self._state, resource.id) is None else "Deploy",
            }
            for resource in self._content.resources
            if resource.is_deployed
        ]

    async def delete_all_others(self, scope: str) -> None:
        """Delete the resources of the group that the template does not have: the mode `Complete`."""
        ids = {resource.id.lower() for resource in self._content.resources}
        inside = f"{scope.lower()}/"
        for resource in arm_resources.all_resources(self._state) if self.error is None else ():
            if resource["id"].lower().startswith(inside) and resource["id"].lower() not in ids:
                await self._send("DELETE", str(resource["id"]), "2024-11-01", None)

    def _reference(self, arguments: Sequence[Any]) -> Any:
        """Return a resource's properties, or all of it for `'Full'`; by ID, by name, or by label."""
        name = str(arguments[0])
        ids = [resource.id for resource in self._content.resources if planning.is_named(resource, name)]
        resource_id = ids[0] if ids else name
        document = self._documents.get(resource_id.lower())
        if document is None:
            document = arm_resources.document(self._state, resource_id)
            if document is not None:
                roles.require(self._state, self._caller, f"{document['type']}/read", resource_id)
        if document is None:
            raise TemplateError(f"The resource '{resource_id}' that the template refers to was not found.")
        if len(arguments) > 2 and str(arguments[2]).lower() == "full":
            return document
        return member(document, "properties")


def _failure(status: int, answer: Json) -> Json | None:
    """Return why a resource was refused, or a nested deployment failed."""
    if status >= 300:
        return dict(
            answer.get("error") or {"code": "BadRequest", "message": f"The resource was refused with {status}."}
        )
    properties = answer.get("properties") or {}
    if properties.get("provisioningState") == "Failed":
        return dict(properties["error"])
    return None


def _deployment_error(deployment_id: str, failure: Json) -> Json:
    message = (
        "At least one resource deployment operation failed. Please list deployment operations for details. Please see "
        "https://aka.ms/arm-deployment-operations for usage details."
    )
    return {"code": "DeploymentFailed", "target": deployment_id, "message": message, "details": [failure]}


def _operation(deployment_id: str, resource: planning.Resource, status: int, failure: Json | None, now: str) -> Json:
    name = new_id().replace("-", "").upper()[:16]
    target = {"id": resource.id, "resourceType": resource.kind, "resourceName": resource.name}
    properties = {
        "provisioningOperation": "Create",
        "provisioningState": "Failed" if failure else "Succeeded",
        "timestamp": now,
        "duration": "PT0S",
        "statusCode": {200: "OK", 201: "Created"}.get(status, str(status)),
        "targetResource": target,
        **({"statusMessage": {"error": failure}} if failure else {}),
    }
    return {"id": f"{deployment_id}/operations/{name}", "operationId": name, "properties": properties}
