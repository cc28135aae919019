"""Resource groups in ARM: creating, changing, deleting, listing them."""

import re

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from podidentity_lab.azure import answers, arm_resources, filters, roles
from podidentity_lab.azure.state import Json, Principal, State

TYPE = "Microsoft.Resources/resourceGroups"
_NAME = re.compile(r"[\w.()-]{0,89}[\w()-]")
_ACTIONS = "Microsoft.Resources/subscriptions/resourceGroups"


async def serve(request: Request, caller: Principal, path: str, state: State, now: float) -> Response:
    """Answer one request for a resource group."""
    key = path.lower()
    action = {"GET": "read", "HEAD": "read", "DELETE": "delete"}.get(request.method, "write")
    roles.require(state, caller, f"{_ACTIONS}/{action}", path)
    if request.method == "PUT":
        return _create_or_retag(state, path, await request.json())
    require(state, path)
    match request.method:
        case "HEAD":
            return Response(status_code=204)
        case "DELETE":
            arm_resources.forget_group(state, key, now)
            return Response(status_code=200)
        case "PATCH":
            body = await request.json()
            if "tags" in body:
                state.groups[key]["tags"] = body["tags"] or {}
    return JSONResponse(state.groups[key])


def serve_all(request: Request, caller: Principal, path: str, state: State) -> Response:
    """Answer for all groups that the caller may read, as `$filter` (names and values of tags) and `$top` narrow them.

    Without a role that reads groups, at any scope, the request is refused.
    """
    groups = [
        group for group in state.groups.values() if roles.is_allowed(state, caller, f"{_ACTIONS}/read", group["id"])
    ]
    if not groups:
        roles.require(state, caller, f"{_ACTIONS}/read", path)
    tests = filters.parse(request.query_params.get("$filter", ""))
    values = [group for group in groups if filters.matches(tests, group)]
    return JSONResponse({"value": values[: arm_resources.limit(request)]})


def require(state: State, path: str) -> None:
    """Refuse with 404 a path whose resource group is not there."""
    parts = path.split("/")
    if "/".join(parts[:5]).lower() not in state.groups:
        raise answers.arm(404, "ResourceGroupNotFound", f"Resource group '{parts[4]}' could not be found.")


def group(path: str, location: str, tags: Json | None = None) -> Json:
    """Return a new resource group as ARM shows it."""
    return {
        "id": path,
        "name": path.rsplit("/", 1)[1],
        "type": TYPE,
        "location": location,
        "tags": tags or {},
        "managedBy": None,
        "properties": {"provisioningState": "Succeeded"},
    }


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        message = (
            f"The provided resource group name '{name}' is not valid: 1 to 90 letters, digits, '-', '.', '_', '(' and "
            "')', without a period at the end."
        )
        raise answers.arm(400, "InvalidResourceGroup", message)


def _create_or_retag(state: State, path: str, body: Json) -> Response:
    """Make a group, or replace its tags: a group stays where it is."""
    current = state.groups.get(path.lower())
    if not body.get("location") and current is None:
        raise answers.arm(400, "LocationRequired", "The location property is required for this definition.")
    location = str(body.get("location") or "").lower().replace(" ", "")
    if current is not None and location and location != current["location"]:
        message = (
            f"Invalid resource group location '{location}'. The Resource group already exists in location "
            f"'{current['location']}'."
        )
        raise answers.arm(409, "InvalidResourceGroupLocation", message)
    if current is None:
        _check_name(path.rsplit("/", 1)[1])
        state.groups[path.lower()] = group(path, location, body.get("tags"))
        return JSONResponse(state.groups[path.lower()], 201)
    current["tags"] = body.get("tags") or {}
    return JSONResponse(current)
