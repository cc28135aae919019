"""Users and groups of the directory, and who is in which: what `az ad user` and `az ad group` need of Graph."""

import re
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from podidentity_lab.azure import answers, filters, memberships
from podidentity_lab.azure.state import DirectoryGroup, Json, State, User, new_id

_COMPARISON = re.compile(
    r"(displayName|userPrincipalName|mailNickname|mail|id) eq '((?:[^']|'')*)'"
    r"|startswith\((displayName|userPrincipalName|mailNickname|mail),\s*'((?:[^']|'')*)'\)",
    re.IGNORECASE,
)


async def serve_users(request: Request, parts: Sequence[str], state: State) -> Response:
    """Answer one request below `/users`; `parts` are the segments behind it, the first an object ID or a name."""
    if not parts:
        if request.method == "POST":
            return JSONResponse(user_document(_create_user(state, await request.json())), 201)
        users = [user_document(user) for user in state.users.values()]
        return JSONResponse({"value": matching(users, request.query_params.get("$filter", ""))})
    user = state.users.get(parts[0]) or find_user(state, parts[0])
    if user is None:
        raise _absent(parts[0])
    match request.method:
        case "DELETE":
            del state.users[user.object_id]
            memberships.forget(state, user.object_id)
            return Response(status_code=204)
        case "PATCH":
            body = await request.json()
            user.display_name = str(body.get("displayName") or user.display_name)
            user.enabled = bool(body.get("accountEnabled", user.enabled))
            user.password = str((body.get("passwordProfile") or {}).get("password") or user.password)
            return Response(status_code=204)
    return JSONResponse(user_document(user))


async def serve_groups(request: Request, parts: Sequence[str], state: State) -> Response:
    """Answer one request below `/groups`."""
    if not parts:
        if request.method == "POST":
            return JSONResponse(group_document(_create_group(state, await request.json())), 201)
        groups = [group_document(group) for group in state.directory_groups.values()]
        return JSONResponse({"value": matching(groups, request.query_params.get("$filter", ""))})
    group = state.directory_groups.get(parts[0])
    if group is None:
        raise _absent(parts[0])
    if len(parts) > 1:
        return await _serve_members(request, group, parts[1:], state)
    if request.method == "DELETE":
        del state.directory_groups[group.object_id]
        memberships.forget(state, group.object_id)
        return Response(status_code=204)
    if request.method == "PATCH":
        body = await request.json()
        group.name = str(body.get("displayName") or group.name)
        group.description = str(body.get("description") or group.description)
        return Response(status_code=204)
    return JSONResponse(group_document(group))


def find_user(state: State, principal_name: str) -> User | None:
    """Return the user of this principal name, in any case, or None."""
    name = principal_name.lower()
    return next((user for user in state.users.values() if user.principal_name.lower() == name), None)


def matching(documents: list[Json], condition: str) -> list[Json]:
    """Return the documents that a $filter names by `eq` and `startswith`, joined by `and`. Refuses others with 400."""
    for part in filters.conjuncts(condition):
        match = _COMPARISON.fullmatch(part)
        if match is None:
            message = f"The lab does not know the $filter '{part}' here; compare displayName by eq or startswith()."
            raise answers.arm(400, "Request_UnsupportedQuery", message)
        field, text = (match[1] or match[3]).lower(), (match[2] or match[4] or "").replace("''", "'").lower()
        values = [(entry, _field(entry, field)) for entry in documents]
        documents = [entry for entry, value in values if value == text or (match[3] and value.startswith(text))]
    return documents


def _field(entry: Json, name: str) -> str:
    """Return a field by its lower-case name, in lower case; "" for none."""
    return next((str(value or "").lower() for key, value in entry.items() if key.lower() == name), "")


def user_document(user: User) -> Json:
    """Return a user as Graph shows it."""
    return {
        "@odata.type": "#microsoft.graph.user",
        "id": user.object_id,
        "displayName": user.display_name,
        "userPrincipalName": user.principal_name,
        "mailNickname": user.mail_nickname,
        "mail": None,
        "accountEnabled": user.enabled,
        "businessPhones": [],
        "givenName": None,
        "jobTitle": None,
        "mobilePhone": None,
        "officeLocation": None,
        "preferredLanguage": None,
        "surname": None,
    }


def group_document(group: DirectoryGroup) -> Json:
    """Return a group as Graph shows it."""
    return {
        "@odata.type": "#microsoft.graph.group",
        "id": group.object_id,
        "displayName": group.name,
        "description": group.description or None,
        "mailNickname": group.mail_nickname,
        "mailEnabled": False,
        "securityEnabled": True,
        "groupTypes": [],
        "mail": None,
        "visibility": None,
    }


def memberships_of(state: State, object_id: str, question: str, body: Json) -> list[str]:
    """Return object IDs of groups that somebody is in: `memberOf`, `transitiveMemberOf` and Graph's two actions."""
    group_ids = memberships.groups_of(state, object_id, transitive=question.lower() != "memberof")
    if question.lower() == "checkmembergroups":
        return [group_id for group_id in body["groupIds"] if group_id in group_ids]
    return group_ids


async def _serve_members(request: Request, group: DirectoryGroup, parts: Sequence[str], state: State) -> Response:
    ids = {"members": group.members, "owners": group.owners}.get(parts[0].lower())
    match request.method, [part.lower() for part in parts[1:]]:
        case "GET", [] if parts[0].lower() in {"members", "owners", "transitivemembers"}:
            entries = (
                ids
                if parts[0].lower() == "owners"
                else memberships.members_of(state, group.object_id, transitive=parts[0].lower() == "transitivemembers")
            )
            return JSONResponse({"value": [entry for name in entries or [] if (entry := any_document(state, name))]})
        case "POST", ["$ref"] if ids is not None:
            object_id = str((await request.json())["@odata.id"]).rpartition("/")[2]
            if not memberships.kind(state, object_id):
                raise _absent(object_id)
            if object_id in ids:
                message = "One or more added object references already exist for the modified properties."
                raise answers.arm(400, "Request_BadRequest", message)
            ids.append(object_id)
            return Response(status_code=204)
        case "DELETE", [object_id, "$ref"] if ids is not None:
            if object_id not in ids:
                raise _absent(object_id)
            ids.remove(object_id)
            return Response(status_code=204)
    raise answers.arm(404, "Request_ResourceNotFound", f"The lab's directory has no '{'/'.join(parts)}' of a group.")


def any_document(state: State, object_id: str) -> Json | None:
    """Return a user or a group as Graph shows it, or a principal by its ID and names; None when there is none."""
    if object_id in state.users:
        return user_document(state.users[object_id])
    if object_id in state.directory_groups:
        return group_document(state.directory_groups[object_id])
    principal = state.principals.get(object_id)
    if principal is None:
        return None
    names: dict[str, Any] = {"id": object_id, "displayName": principal.name, "appId": principal.client_id}
    return {"@odata.type": "#microsoft.graph.servicePrincipal", **names}


def _create_user(state: State, body: Json) -> User:
    name = str(body["userPrincipalName"])
    if "@" not in name or find_user(state, name) is not None:
        message = f"The userPrincipalName '{name}' is not NAME@DOMAIN, or another object has it already."
        raise answers.arm(400, "Request_BadRequest", message)
    password = str((body.get("passwordProfile") or {}).get("password", ""))
    nickname = str(body.get("mailNickname") or name.split("@", maxsplit=1)[0])
    user = User(new_id(), name, str(body["displayName"]), password, nickname, bool(body.get("accountEnabled", True)))
    state.users[user.object_id] = user
    return user


def _create_group(state: State, body: Json) -> DirectoryGroup:
    group = DirectoryGroup(
        new_id(), str(body["displayName"]), str(body["mailNickname"]), str(body.get("description") or "")
    )
    references = ((group.members, "members@odata.bind"), (group.owners, "owners@odata.bind"))
    for ids, field in references:
        ids += [str(text).rpartition("/")[2] for text in body.get(field) or []]
        if not all(memberships.kind(state, object_id) for object_id in ids):
            raise _absent(next(object_id for object_id in ids if not memberships.kind(state, object_id)))
    state.directory_groups[group.object_id] = group
    return group


def _absent(name: str) -> answers.Refusal:
    message = f"Resource '{name}' does not exist or one of its queried reference-property objects are not present."
    return answers.arm(404, "Request_ResourceNotFound", message)
