"""Graph makes applications as `az ad` asks for them, for owners only, and shows nobody's secrets."""

from collections.abc import Callable

import httpx2

from podidentity_lab.azure import Azure
from podidentity_lab.azure.state import ServicePrincipal

GRAPH = "https://graph.microsoft.com/v1.0"
Send = Callable[..., httpx2.Response]
SignIn = Callable[..., str]
Ask = Callable[..., httpx2.Response]


def test_an_application_is_made_and_signs_in_with_its_new_password(ask: Ask, sign_in: SignIn) -> None:
    """As `az ad sp create-for-rbac` does it; the password is shown only when it is created."""
    made = ask("POST", "/applications", {"displayName": "writer"}).json()
    shown = ask("POST", "/servicePrincipals", {"appId": made["appId"]}).json()
    secret = ask("POST", f"/applications/{made['id']}/addPassword", {}).json()["secretText"]
    principal = ServicePrincipal(made["appId"], shown["id"], secret)
    assert sign_in("https://vault.azure.net/.default", principal)
    assert secret not in ask("GET", f"/applications/{made['id']}").text
    found = ask("GET", f"/servicePrincipals?$filter=servicePrincipalNames/any(c:c eq '{made['appId']}')").json()
    assert [one["id"] for one in found["value"]] == [shown["id"]]
    assert ask("DELETE", f"/applications/{made['id']}").status_code == 204
    assert ask("GET", f"/servicePrincipals/{shown['id']}").status_code == 404


def test_only_an_owner_writes(azure: Azure, send: Send, sign_in: SignIn) -> None:
    """Any principal with a token may read, but creating an application is refused."""
    token = sign_in("https://graph.microsoft.com/.default", azure.settings.cluster)
    refused = send("POST", f"{GRAPH}/applications", token, json={"displayName": "x"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "Authorization_RequestDenied")
    assert send("GET", f"{GRAPH}/servicePrincipals/{azure.settings.owner.object_id}", token).status_code == 200
    assert send("GET", f"{GRAPH}/me", token).status_code == 400
    assert send("GET", f"{GRAPH}/servicePrincipals").status_code == 401


def test_an_application_has_federated_credentials(ask: Ask) -> None:
    """They are created, listed and deleted; an issuer without TLS is refused."""
    made = ask("POST", "/applications", {"displayName": "writer"}).json()
    path = f"/applications/{made['id']}/federatedIdentityCredentials"
    body = {"name": "one", "issuer": "https://issuer.example", "subject": "s", "audiences": ["a"]}
    assert ask("POST", path, body).status_code == 201
    assert [one["subject"] for one in ask("GET", path).json()["value"]] == ["s"]
    assert ask("POST", path, {**body, "name": "two", "issuer": "http://issuer.example"}).status_code == 400
    assert ask("DELETE", f"{path}/one").status_code == 204
    assert ask("GET", path).json()["value"] == []
