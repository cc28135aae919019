"""Users and groups of the lab's directory: who is in which group, and that a group's roles are its members'."""

from collections.abc import Callable

import httpx2

from daemons.lab_azure.management import SCOPE, Management
from podidentity_lab.azure import Azure

GRAPH = "https://graph.microsoft.com/v1.0"
Send = Callable[..., httpx2.Response]
SignIn = Callable[..., str]
Ask = Callable[..., httpx2.Response]


def group(ask: Ask, name: str, *members: str) -> str:
    """Create a group with members; return its ID."""
    created = ask("POST", "/groups", {"displayName": name, "mailNickname": name, "securityEnabled": True})
    assert created.status_code == 201
    for member in members:
        assert add(ask, created.json()["id"], member).status_code == 204
    return str(created.json()["id"])


def add(ask: Ask, group_id: str, member: str) -> httpx2.Response:
    """Add a member."""
    return ask("POST", f"/groups/{group_id}/members/$ref", {"@odata.id": f"{GRAPH}/directoryObjects/{member}"})


def ids(answer: httpx2.Response) -> list[str]:
    """Return the IDs of a list."""
    return [entry["id"] for entry in answer.json()["value"]]


def test_a_groups_roles_are_its_members(ask: Ask, manage: Management, sign_in: SignIn) -> None:
    """A role of a group holds for members of groups in it, until they leave or the group is deleted."""
    somebody = manage.azure.settings.cluster
    inner = group(ask, "readers", somebody.object_id)
    outer = group(ask, "all", inner)
    mine = Management(manage.azure, manage.send, sign_in(SCOPE, somebody))
    assert mine.code(mine("GET", manage.group)) == "AuthorizationFailed"
    properties = {
        "principalId": outer,
        "roleDefinitionId": "/providers/Microsoft.Authorization/roleDefinitions/acdd72a7-3385-48ef-bd42-f606fba81ae7",
    }
    path = f"{manage.group}/providers/Microsoft.Authorization/roleAssignments"
    answer = manage("PUT", f"{path}/11111111-1111-4111-8111-111111111111", {"properties": properties})
    assert answer.json()["properties"]["principalType"] == "Group"
    assert mine("GET", manage.group).status_code == 200
    listing = manage.send(
        "GET",
        f"https://management.azure.com{path}?api-version=1&$filter=assignedTo('{somebody.object_id}')",
        manage.token,
    ).json()
    assert [one["properties"]["principalId"] for one in listing["value"]] == [outer]
    saved = Azure.restore(manage.azure.save()).state
    assert (saved.directory_groups, saved.users) == (manage.azure.state.directory_groups, {})
    assert ask("DELETE", f"/groups/{outer}/members/{inner}/$ref").status_code == 204
    assert mine.code(mine("GET", manage.group)) == "AuthorizationFailed"
    assert add(ask, outer, somebody.object_id).status_code == 204
    assert mine("GET", manage.group).status_code == 200
    assert ask("DELETE", f"/groups/{outer}").status_code == 204
    assert mine.code(mine("GET", manage.group)) == "AuthorizationFailed"


def test_access_policies_count_for_members(ask: Ask, azure: Azure, manage: Management, sign_in: SignIn) -> None:
    """A vault's access policy for a group holds for the group's members."""
    somebody = azure.settings.cluster
    policy = {"objectId": group(ask, "readers", somebody.object_id), "permissions": {"secrets": ["set"]}}
    properties = {"accessPolicies": [policy], "enableRbacAuthorization": False}
    vault = f"{manage.group}/providers/Microsoft.KeyVault/vaults/kv1"
    assert manage("PUT", vault, {"location": "eastus", "properties": properties}).status_code == 201
    token = sign_in("https://vault.azure.net/.default", somebody)
    url = "https://kv1.vault.azure.net/secrets/one"
    assert manage.send("PUT", url, token, json={"value": "x"}).status_code == 200
    assert manage.send("GET", url, token).status_code == 403


def test_who_is_in_which_group(ask: Ask, azure: Azure) -> None:
    """Memberships are found for users, principals and groups, directly and through groups, even in a circle."""
    body = {"displayName": "Ada", "userPrincipalName": "ada@lab.test", "passwordProfile": {"password": "x"}}
    ada = ask("POST", "/users", body).json()["id"]
    inner = group(ask, "inner", ada, azure.settings.owner.object_id)
    outer = group(ask, "outer", inner)
    assert add(ask, inner, outer).status_code == 204
    assert ids(ask("GET", f"/users/{ada}/memberOf")) == [inner]
    assert ids(ask("GET", "/users/Ada@lab.test/transitiveMemberOf")) == [inner, outer]
    assert ids(ask("GET", f"/servicePrincipals/{azure.settings.owner.object_id}/transitiveMemberOf")) == [inner, outer]
    assert ask("POST", f"/users/{ada}/getMemberGroups", {"securityEnabledOnly": True}).json()["value"] == [inner, outer]
    question = {"groupIds": [outer, "other"]}
    assert ask("POST", f"/directoryObjects/{ada}/checkMemberGroups", question).json()["value"] == [outer]
    assert ids(ask("GET", f"/groups/{outer}/members")) == [inner]
    assert set(ids(ask("GET", f"/groups/{outer}/transitiveMembers"))) == {
        inner,
        outer,
        ada,
        azure.settings.owner.object_id,
    }
    assert {one["@odata.type"].rsplit(".")[-1] for one in ask("GET", f"/groups/{inner}/members").json()["value"]} == {
        "user",
        "servicePrincipal",
        "group",
    }
    assert ask("GET", f"/directoryObjects/{ada}").json()["displayName"] == "Ada"
    assert ids(ask("POST", "/directoryObjects/getByIds", {"ids": [outer, "nobody"]})) == [outer]
    assert ask("DELETE", f"/users/{ada}").status_code == 204
    assert ada not in ids(ask("GET", f"/groups/{inner}/members"))
    for path in ("/users/nobody", "/groups/nobody", "/users/nobody/memberOf", "/directoryObjects/nobody"):
        assert ask("GET", path).status_code == 404, path


def test_users_and_groups_are_made_changed_and_found(ask: Ask) -> None:
    """Users and groups are found by their exact name or its start."""
    body = {"displayName": "Ada", "userPrincipalName": "ada@lab.test", "passwordProfile": {"password": "secret-word"}}
    created = ask("POST", "/users", body)
    assert (created.status_code, "secret-word" in created.text) == (201, False)
    assert ask("POST", "/users", {**body, "userPrincipalName": "ADA@lab.test"}).status_code == 400
    assert ask("POST", "/users", {**body, "userPrincipalName": "ada"}).status_code == 400
    assert ask("PATCH", "/users/ada@lab.test", {"displayName": "Ada L."}).status_code == 204
    assert ids(ask("GET", "/users?$filter=startswith(displayName,'ada')")) == [created.json()["id"]]
    assert ids(ask("GET", "/users?$filter=userPrincipalName eq 'ada@lab.test'")) == [created.json()["id"]]
    assert ids(ask("GET", "/users?$filter=displayName eq 'ada'")) == []
    team = group(ask, "it's us")
    assert ask("PATCH", f"/groups/{team}", {"description": "a team"}).status_code == 204
    found = ask("GET", "/groups?$filter=displayName eq 'it''s us'").json()["value"]
    assert [(one["id"], one["description"]) for one in found] == [(team, "a team")]
    assert ids(ask("GET", "/groups?$filter=displayName eq 'it''s us' and mailNickname eq 'x'")) == []
    assert ask("GET", "/groups?$filter=mailEnabled eq true").status_code == 400
    bound = {"displayName": "b", "mailNickname": "b", "owners@odata.bind": [f"{GRAPH}/users/{created.json()['id']}"]}
    other = ask("POST", "/groups", bound).json()["id"]
    assert ids(ask("GET", f"/groups/{other}/owners")) == [created.json()["id"]]
    assert add(ask, team, other).status_code == 204
    assert add(ask, team, other).status_code == 400
    assert add(ask, team, "nobody").status_code == 404
    assert ask("DELETE", f"/groups/{team}/members/nobody/$ref").status_code == 404
    assert ask("POST", f"/groups/{team}/elsewhere").status_code == 404


def test_only_an_owner_writes_and_only_a_user_has_a_me(azure: Azure, send: Send, sign_in: SignIn) -> None:
    """Any principal with a token may ask in which groups it is, but `/me` needs a signed-in user."""
    token = sign_in("https://graph.microsoft.com/.default", azure.settings.cluster)
    body = {"displayName": "x", "mailNickname": "x"}
    assert send("POST", f"{GRAPH}/groups", token, json=body).json()["error"]["code"] == "Authorization_RequestDenied"
    own = azure.settings.cluster.object_id
    assert send("POST", f"{GRAPH}/servicePrincipals/{own}/getMemberGroups", token, json={}).json()["value"] == []
    assert "delegated" in send("GET", f"{GRAPH}/me", token).json()["error"]["message"]
