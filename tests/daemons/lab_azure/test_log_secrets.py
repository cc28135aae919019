"""The log of the lab's Azure, which `podidentity lab log`, the page and its download show, holds no secret.

Each request here has one, where a client may write it by mistake as well as where it belongs. Refusals quote what they
refuse: they are what could hold a secret.
"""

import base64
import json
from collections.abc import Callable
from typing import Any

import httpx2
import pytest

from daemons.lab_azure.management import Management
from podidentity_lab.azure import Azure
from podidentity_lab.azure.log import TEXT_LIMIT

Send = Callable[..., httpx2.Response]
SECRET = "5ecret8Q~of-nobody"
LOGIN = "https://login.microsoftonline.com"
VAULT = "https://kv1.vault.azure.net"
STORE = "https://store1.blob.core.windows.net"


@pytest.fixture
def vault(manage: Management, sign_in: Callable[..., str]) -> str:
    """A vault and a storage account; the owner's token for the vault."""
    properties = {"enableRbacAuthorization": False, "accessPolicies": [policy(manage.azure)]}
    body = {"location": "eastus", "properties": properties}
    assert manage("PUT", f"{manage.group}/providers/Microsoft.KeyVault/vaults/kv1", body).status_code == 201
    account = {"location": "eastus", "kind": "StorageV2", "sku": {"name": "Standard_LRS"}}
    manage("PUT", f"{manage.group}/providers/Microsoft.Storage/storageAccounts/store1", account)
    return sign_in("https://vault.azure.net/.default")


def policy(azure: Azure) -> dict[str, Any]:
    """Return an access policy that lets the owner do everything."""
    permissions = {kind: ["all"] for kind in ("secrets", "keys", "certificates")}
    owner = azure.settings.owner.object_id
    return {"tenantId": azure.settings.tenant_id, "objectId": owner, "permissions": permissions}


def test_a_refused_sign_in_leaves_no_secret(azure: Azure, send: Send) -> None:
    """Client secrets, passwords, refresh tokens, assertions, codes: wrong ones, and ones in the wrong place."""
    url = f"{LOGIN}/{azure.settings.tenant_id}/oauth2/v2.0/token"
    base = {"client_id": azure.settings.owner.client_id, "scope": "https://vault.azure.net/.default"}
    for grant in ("client_credentials", "password", "refresh_token", "authorization_code", "device_code", "", SECRET):
        for name in ("client_secret", "password", "refresh_token", "client_assertion", "code", "device_code"):
            answer = send("POST", url, data={**base, "grant_type": grant, "username": "ada", name: SECRET})
            assert answer.status_code in {400, 401}
    send("POST", f"{url}?client_secret={SECRET}&code={SECRET}")
    assert_no_secret(azure)


def test_a_refused_request_leaves_no_secret(manage: Management, vault: str) -> None:
    """Bearer tokens, values of secrets, keys, certificates and passwords, also where the request is malformed."""
    azure, send = manage.azure, manage.send
    for url in (f"{VAULT}/secrets/a", "https://management.azure.com/subscriptions", f"{STORE}/box/blob"):
        send("GET", f"{url}?api-version=7.4", SECRET)
        send("GET", f"{url}?sig={SECRET}&se={SECRET}&api-version=7.4")
        send("GET", url, headers={"Authorization": f"SharedKey store1:{SECRET}"})
    assert send("PUT", f"{VAULT}/secrets/a?api-version=7.4", vault, json={"value": SECRET}).status_code == 200
    content = base64.b64encode(SECRET.encode()).decode()
    bodies: list[Any] = [
        {"value": SECRET, "attributes": {"exp": SECRET, "enabled": SECRET}},
        {"value": SECRET, "attributes": SECRET, "tags": SECRET},
        {"value": [SECRET], "pwd": SECRET, "policy": SECRET},
        {"value": content, "pwd": SECRET},
        {"key": {"kty": "RSA", "n": SECRET, "e": "AQAB", "d": content}},
        {"key": {"kty": "EC", "crv": "P-256", "x": content, "y": SECRET, "d": SECRET}},
        {"kty": "RSA", "key_size": SECRET, "alg": "RS256", "value": SECRET},
        [SECRET],
        SECRET,
    ]
    paths = ("secrets/a", "keys/k", "keys/k/import", "certificates/c/import", "certificates/c/create", "keys/k/sign")
    for path in paths:
        for method in ("PUT", "POST", "PATCH"):
            for body in bodies:
                send(method, f"{VAULT}/{path}?api-version=7.4", vault, json=body)
            send(method, f"{VAULT}/{path}?api-version=7.4", vault, content=f'{{"value": "{SECRET}')
    assert_no_secret(azure)


def test_a_refused_resource_leaves_no_secret(
    manage: Management, vault: str, ask: Callable[..., httpx2.Response]
) -> None:
    """Secrets in ARM's bodies, secure parameters of templates, passwords in Graph's."""
    assert vault
    kv = f"{manage.group}/providers/Microsoft.KeyVault/vaults/kv1/secrets/a"
    for properties in ({"value": SECRET, "attributes": {"exp": SECRET}}, {"value": {"x": SECRET}}, SECRET):
        manage("PUT", kv, {"properties": properties})
    template = {
        "$schema": "https://schema.management.azure.com/schemas/2019-04-01/deploymentTemplate.json#",
        "contentVersion": "1.0.0.0",
        "resources": [],
    }
    for kind in ("securestring", "secureObject"):
        for rule in ({"maxLength": 3}, {"allowedValues": ["a"]}, {"minLength": 99}, {}):
            definition = {"parameters": {"p": {"type": kind, **rule}}}
            value = {"p": {"value": SECRET if kind == "securestring" else {"x": SECRET}}}
            properties = {"mode": "Incremental", "template": {**template, **definition}, "parameters": value}
            manage("PUT", f"{manage.group}/providers/Microsoft.Resources/deployments/d", {"properties": properties})
    for profile in ({"password": SECRET, "forceChangePasswordNextSignIn": SECRET}, SECRET, [SECRET]):
        ask("POST", "/users", {"displayName": "A", "userPrincipalName": "a@lab.test", "passwordProfile": profile})
    ask(
        "POST",
        "/applications",
        {"displayName": "a", "passwordCredentials": SECRET, "keyCredentials": [{"key": SECRET}]},
    )
    assert_no_secret(manage.azure)


def test_what_a_client_writes_is_bounded_in_the_log(azure: Azure, send: Send) -> None:
    """The log keeps thousands of entries: of a path, a host or a name that a client made long, it keeps a part."""
    send("GET", f"{LOGIN}/{'x' * 20_000}?client_id={'x' * 20_000}", headers={"Host": "y" * 20_000})
    send("POST", f"{LOGIN}/common/oauth2/v2.0/token", data={"scope": "z" * 200_000, "grant_type": "password"})
    longest = max(len(str(value)) for entry in azure.log.entries for value in entry.as_json().values())
    assert longest <= TEXT_LIMIT


def assert_no_secret(azure: Azure) -> None:
    """Fail when the log has the secret, as it is or encoded."""
    assert azure.log.entries
    text = "\n".join(json.dumps(entry.as_json()) for entry in azure.log.entries)
    for form in (SECRET, base64.b64encode(SECRET.encode()).decode(), SECRET.replace("~", "%7E")):
        assert [line for line in text.splitlines() if form in line] == []
