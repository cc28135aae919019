"""Users sign in to the lab with their password; their roles and those of their groups count in every service."""

import uuid
from collections.abc import Callable
from typing import Any

import httpx2
import jwt
import pytest

from daemons.lab_azure.management import SCOPE, Management
from podidentity_lab.azure import Azure

Send = Callable[..., httpx2.Response]
Ask = Callable[..., httpx2.Response]
LOGIN = "https://login.microsoftonline.com"
AZ = "04b07795-8ddb-461a-bbee-02f9e1bf7b46"
NAME, PASSWORD = "ada@lab.test", "not-a-real-one"
READER = "/providers/Microsoft.Authorization/roleDefinitions/acdd72a7-3385-48ef-bd42-f606fba81ae7"


@pytest.fixture
def ada(ask: Ask) -> str:
    """The object ID of a user with a password."""
    body = {"displayName": "Ada", "userPrincipalName": NAME, "passwordProfile": {"password": PASSWORD}}
    return str(ask("POST", "/users", body).json()["id"])


@pytest.fixture
def enter(send: Send, ada: str) -> Callable[..., httpx2.Response]:
    """Return a function that sends a password, or another grant, as azure-cli does."""
    assert ada

    def enter(tenant: str = "organizations", version: str = "v2.0/", **fields: str) -> httpx2.Response:
        form = {"client_id": AZ, "grant_type": "password", "username": NAME, "password": PASSWORD, "scope": SCOPE}
        return send("POST", f"{LOGIN}/{tenant}/oauth2/{version}token", data={**form, **fields})

    return enter


def content(token: str) -> dict[str, Any]:
    """Return a token's claims."""
    claims: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    return claims


def give(manage: Management, principal: str, role: str = READER) -> None:
    """Give somebody a role on the group."""
    path = f"{manage.group}/providers/Microsoft.Authorization/roleAssignments/{uuid.uuid4()}"
    properties = {"principalId": principal, "roleDefinitionId": role}
    assert manage("PUT", path, {"properties": properties}).status_code == 201


def test_tokens_say_that_they_are_a_users(azure: Azure, send: Send, enter: Ask, ada: str) -> None:
    """Access token, ID token and `client_info` have what client libraries read, in v2 and in v1."""
    tenant = azure.settings.tenant_id
    answer = enter(username=NAME.upper(), scope=f"{SCOPE} openid profile offline_access").json()
    claims, id_claims = content(answer["access_token"]), content(answer["id_token"])
    assert (claims["oid"], claims["upn"], claims["appid"], claims["tid"]) == (ada, NAME, AZ, tenant)
    assert (claims["aud"], claims["scp"]) == (SCOPE.removesuffix("/.default"), "user_impersonation")
    assert {"idtyp", "roles"}.isdisjoint(claims)
    assert (id_claims["aud"], id_claims["preferred_username"], id_claims["tid"]) == (AZ, NAME, tenant)
    assert id_claims["iss"] == f"{LOGIN}/{tenant}/v2.0"
    assert SCOPE in answer["scope"].split()
    again = enter(tenant, grant_type="refresh_token", refresh_token=answer["refresh_token"], scope="User.Read").json()
    assert (content(again["access_token"])["aud"], content(again["access_token"])["scp"]) == (
        "https://graph.microsoft.com",
        "User.Read",
    )
    old = enter(version="", resource="https://vault.azure.net").json()
    assert (content(old["access_token"])["aud"], old["resource"]) == ("https://vault.azure.net",) * 2
    assert send("GET", f"{LOGIN}/common/userrealm/{NAME}?api-version=1.0").json()["account_type"] == "Managed"


def test_who_cannot_sign_in_is_told_azures_number(azure: Azure, ask: Ask, enter: Ask) -> None:
    """A wrong password, an unknown user, a disabled one, an application that is not there: each has its AADSTS."""
    refresh_token = enter().json()["refresh_token"]
    tokens = {"grant_type": "refresh_token", "refresh_token": refresh_token}

    def number(**fields: str) -> int:
        answer = enter(**fields)
        assert answer.status_code in {400, 401}
        return int(answer.json()["error_codes"][0])

    assert number(password="wrong") == 50126
    assert number(username="bob@lab.test") == 50034
    assert number(client_id=str(uuid.uuid4())) == 700016
    assert number(client_id=azure.settings.owner.client_id) == 7000216
    assert number(scope="api://nobody/.default") == 500011
    assert number(tenant=str(uuid.uuid4())) == 90002
    assert number(**{**tokens, "refresh_token": enter().json()["access_token"]}) == 9002313
    secret = {"client_id": azure.settings.owner.client_id, "client_secret": azure.settings.owner.secret}
    assert enter(**secret).status_code == 200
    without = {"displayName": "Bob", "userPrincipalName": "bob@lab.test"}
    assert ask("POST", "/users", without).status_code == 201
    assert number(username="bob@lab.test") == 50056
    assert ask("PATCH", f"/users/{NAME}", {"passwordProfile": {"password": "another"}}).status_code == 204
    assert number() == 50126
    assert enter(password="another").status_code == 200
    assert ask("PATCH", f"/users/{NAME}", {"accountEnabled": False}).status_code == 204
    assert (number(password="another"), number(**tokens)) == (50057, 50057)
    assert ask("DELETE", f"/users/{NAME}").status_code == 204
    assert number(**tokens) == 50034


def test_a_users_roles_count_everywhere(manage: Management, ask: Ask, enter: Ask, ada: str) -> None:
    """ARM by a role of a group, a vault and a blob by the user's own; refusals and the log have the user's name."""
    azure, send = manage.azure, manage.send
    tokens = {
        resource: enter(scope=f"{resource}/.default").json()["access_token"]
        for resource in ("https://management.azure.com", "https://vault.azure.net", "https://storage.azure.com")
    }
    arm, vault, storage = tokens.values()
    mine = Management(azure, send, arm)
    refused = mine("GET", manage.group).json()["error"]
    assert (refused["code"], f"'{NAME}'" in refused["message"]) == ("AuthorizationFailed", True)
    assert azure.log.entries[-1].identity == NAME
    team = ask("POST", "/groups", {"displayName": "team", "mailNickname": "team"}).json()["id"]
    reference = {"@odata.id": f"https://graph.microsoft.com/v1.0/directoryObjects/{ada}"}
    assert ask("POST", f"/groups/{team}/members/$ref", reference).status_code == 204
    give(manage, team)
    assert mine("GET", manage.group).status_code == 200
    definitions = "/providers/Microsoft.Authorization/roleDefinitions"
    give(manage, ada, f"{definitions}/00482a5a-887f-4fb3-b363-3b7fe8e74483")
    give(manage, ada, f"{definitions}/b7e6dc6d-f1e8-4753-8033-0f276bb0955b")
    body = {"location": "eastus", "properties": {"enableRbacAuthorization": True}}
    assert manage("PUT", f"{manage.group}/providers/Microsoft.KeyVault/vaults/kv1", body).status_code == 201
    assert send("PUT", "https://kv1.vault.azure.net/secrets/one", vault, json={"value": "x"}).status_code == 200
    account = {"location": "eastus", "kind": "StorageV2", "sku": {"name": "Standard_LRS"}}
    manage("PUT", f"{manage.group}/providers/Microsoft.Storage/storageAccounts/store1", account)
    assert send("PUT", "https://store1.blob.core.windows.net/box?restype=container", storage).status_code == 201


def test_a_user_has_a_me(send: Send, ask: Ask, enter: Ask, ada: str) -> None:
    """Graph shows the user who asks, and the user's groups."""
    team = ask("POST", "/groups", {"displayName": "team", "mailNickname": "team"}).json()["id"]
    graph = "https://graph.microsoft.com/v1.0"
    ask("POST", f"/groups/{team}/members/$ref", {"@odata.id": f"{graph}/directoryObjects/{ada}"})
    token = enter(scope="https://graph.microsoft.com//.default").json()["access_token"]
    assert send("GET", f"{graph}/me", token).json()["userPrincipalName"] == NAME
    assert [entry["id"] for entry in send("GET", f"{graph}/me/memberOf", token).json()["value"]] == [team]
    assert send("POST", f"{graph}/groups", token, json={"displayName": "x"}).status_code == 403
    assert ask("DELETE", f"/users/{NAME}").status_code == 204
    assert send("GET", f"{graph}/me", token).status_code == 401
