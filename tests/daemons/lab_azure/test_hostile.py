"""Requests that are wrong on purpose: each is refused with a sentence, and spoils nothing that comes after."""

import base64
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any
from xml.etree import ElementTree as ET

import httpx2
import pytest

from podidentity_lab.azure import Azure, AzureSettings, bodies
from podidentity_lab.azure.roles import ROLES

ODD: tuple[Any, ...] = (None, 5, -1e300, True, "x", "", [], ["x"], [[]], {"x": []}, [{"x": 5}])
"""Values of every kind, for places where another one belongs."""
BROKEN = (b"", b"5", b'"x"', b"[]", b"{", b"\xff", b'{"tags": {"a": NaN}}', b'{"tags": {"a": "\\ud800"}}', b"[" * 9999)
AUDIENCES = {
    "graph.microsoft.com": "https://graph.microsoft.com",
    "management.azure.com": "https://management.azure.com",
    "vault.vault.azure.net": "https://vault.azure.net",
    "store.blob.core.windows.net": "https://storage.azure.com",
}
VAULT, BLOBS, GRAPH = "vault.vault.azure.net", "store.blob.core.windows.net", "graph.microsoft.com/v1.0"


class Caller:
    """The owner of a lab's Azure, without a network: whatever a service does not catch is raised in the test."""

    def __init__(self, azure: Azure, http: httpx2.AsyncClient) -> None:
        self.azure = azure
        self.http = http
        self.subscription = f"/subscriptions/{azure.settings.subscription_id}"
        self.group = f"{self.subscription}/resourceGroups/rg"
        self.tokens: dict[str, str] = {}

    async def token(self, host: str) -> str:
        """Return a token for the service at a host."""
        if host not in self.tokens:
            owner = self.azure.settings.owner
            form = {"grant_type": "client_credentials", "client_id": owner.client_id, "client_secret": owner.secret}
            url = f"https://login.microsoftonline.com/{self.azure.settings.tenant_id}/oauth2/v2.0/token"
            answer = await self.http.post(url, data={**form, "scope": f"{AUDIENCES[host]}/.default"})
            self.tokens[host] = answer.json()["access_token"]
        return self.tokens[host]

    async def __call__(self, method: str, url: str, body: Any = None, **headers: str) -> httpx2.Response:
        """Send a request; `url` begins with a host, or is an ARM path; `body` is a value of JSON, or bytes as they are.

        Underscores in the names of headers stand for hyphens.
        """
        if url.startswith("/"):
            url = f"management.azure.com{url}?api-version=2024-11-01"
        content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        sent["Authorization"] = f"Bearer {await self.token(url.partition('/')[0])}"
        return await self.http.request(method, f"https://{url}", content=content, headers=sent)


@pytest.fixture
async def caller() -> AsyncIterator[Caller]:
    """The owner, with a group, a vault, a storage account with a container, and all rights on what is in them."""
    azure = Azure(AzureSettings())
    azure.faults.federation_write_seconds = 0
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=azure.app)) as http:
        owner = Caller(azure, http)
        providers = f"{owner.group}/providers"
        await owner("PUT", owner.group, {"location": "eastus"})
        await owner("PUT", f"{providers}/Microsoft.KeyVault/vaults/vault", {"location": "eastus"})
        await owner("PUT", f"{providers}/Microsoft.Storage/storageAccounts/store", {"location": "eastus"})
        for role in ("Key Vault Administrator", "Storage Blob Data Owner"):
            role_id = next(key for key, candidate in ROLES.items() if candidate.name == role)
            path = f"{providers}/Microsoft.Authorization/roleAssignments/{role_id}"
            definition = f"{owner.subscription}/providers/Microsoft.Authorization/roleDefinitions/{role_id}"
            properties = {"principalId": azure.settings.owner.object_id, "roleDefinitionId": definition}
            assert (await owner("PUT", path, {"properties": properties})).status_code == 201
        assert (await owner("PUT", f"{BLOBS}/box?restype=container")).status_code == 201
        yield owner


def writes(caller: Caller) -> list[tuple[str, str, Any]]:
    """Return a good request of each kind that changes something: method, URL and body."""
    providers, graph = f"{caller.group}/providers", "graph.microsoft.com/v1.0"
    owner = caller.azure.settings.owner
    identity = f"{providers}/Microsoft.ManagedIdentity/userAssignedIdentities/identity"
    federated = {"issuer": "https://i", "subject": "s", "audiences": ["api://AzureADTokenExchange"]}
    policy = {"objectId": owner.object_id, "tenantId": "t", "permissions": {"secrets": ["get"]}}
    x509 = {"subject": "CN=a", "sans": {"dns_names": ["a"]}, "ekus": ["1.2.3"], "key_usage": ["keyAgreement"]}
    key = {"kty": "EC", "crv": "P-256"}
    certificate = {"issuer": {"name": "Self"}, "key_props": key, "x509_props": {**x509, "validity_months": 12}}
    attributes = {"enabled": True, "nbf": 1, "exp": 2}
    machine = {"location": "l", "sku": {"name": "n"}, "properties": {"a": 1}, "identity": {"type": "SystemAssigned"}}
    person = {"displayName": "d", "userPrincipalName": "u@d", "mailNickname": "u", "passwordProfile": {"password": "p"}}
    template = {
        "parameters": {"p": {"type": "string", "defaultValue": "x", "allowedValues": ["x"], "maxLength": 5}},
        "variables": {"v": "[parameters('p')]", "copy": [{"name": "w", "count": 2, "input": "x"}]},
        "functions": [{"namespace": "n", "members": {"f": {"parameters": [], "output": {"type": "int", "value": 5}}}}],
        "resources": [
            {
                "type": "Microsoft.ManagedIdentity/userAssignedIdentities",
                "apiVersion": "2023-01-31",
                "name": "[concat('d', copyIndex())]",
                "location": "l",
                "dependsOn": [],
                "copy": {"name": "l", "count": 1},
            }
        ],
        "outputs": {"o": {"type": "int", "value": "[n.f()]"}},
    }
    return [
        ("PUT", caller.group, {"location": "eastus", "tags": {"a": "b"}}),
        ("PATCH", caller.group, {"tags": {"a": "b"}}),
        ("PUT", identity, {"location": "eastus", "tags": {"a": "b"}}),
        ("PATCH", identity, {"tags": {"a": "b"}}),
        ("PUT", f"{identity}/federatedIdentityCredentials/cred", {"properties": federated}),
        ("PUT", f"{providers}/Microsoft.KeyVault/vaults/other", {"location": "l", "properties": {"a": 1}, "tags": {}}),
        ("PATCH", f"{providers}/Microsoft.KeyVault/vaults/vault", {"properties": {"accessPolicies": [policy]}}),
        (
            "PUT",
            f"{providers}/Microsoft.KeyVault/vaults/vault/accessPolicies/add",
            {"properties": {"accessPolicies": [policy]}},
        ),
        (
            "PUT",
            f"{providers}/Microsoft.KeyVault/vaults/vault/secrets/arm",
            {"properties": {"value": "v", "attributes": attributes}, "tags": {"a": "b"}},
        ),
        ("PUT", f"{providers}/Microsoft.Storage/storageAccounts/stock", {"location": "l", "sku": {"name": "n"}}),
        ("PUT", f"{providers}/Microsoft.Compute/virtualMachines/vm", machine),
        ("PATCH", f"{providers}/Microsoft.Compute/virtualMachines/vm", {"identity": {"userAssignedIdentities": {}}}),
        (
            "PUT",
            f"{providers}/Microsoft.Resources/deployments/deployment",
            {"properties": {"mode": "Incremental", "template": template, "parameters": {"p": {"value": "x"}}}},
        ),
        ("PUT", f"{VAULT}/secrets/secret", {"value": "v", "attributes": attributes, "tags": {"a": "b"}}),
        ("PATCH", f"{VAULT}/secrets/secret", {"attributes": attributes, "contentType": "t"}),
        ("POST", f"{VAULT}/keys/key/create", {**key, "key_ops": ["sign"], "attributes": attributes}),
        ("PUT", f"{VAULT}/keys/jwk", {"key": {"kty": "RSA", "n": "AQAB", "e": "AQAB", "d": "AQAB"}}),
        ("POST", f"{VAULT}/keys/key/sign", {"alg": "ES256", "value": base64.b64encode(b"x" * 32).decode().rstrip("=")}),
        ("POST", f"{VAULT}/certificates/cert/create", {"policy": certificate, "attributes": attributes}),
        ("PATCH", f"{VAULT}/certificates/cert/policy", {"key_props": key}),
        ("POST", f"{graph}/users", person),
        ("POST", f"{graph}/groups", {"displayName": "g", "mailNickname": "g", "members@odata.bind": ["x/y"]}),
        ("POST", f"{graph}/applications", {"displayName": "a", "keyCredentials": [{"key": "AA=="}]}),
        ("POST", f"{graph}/servicePrincipals", {"appId": owner.client_id}),
        ("POST", f"{graph}/directoryObjects/getByIds", {"ids": ["x"]}),
        ("POST", f"{graph}/users/{owner.object_id}/checkMemberGroups", {"groupIds": ["x"]}),
    ]


def spoiled(value: Any) -> Iterator[Any]:
    """Yield a value with each of its parts replaced by odd ones, one at a time."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        for odd in (*ODD, *spoiled(part)):
            copy = {**value} if isinstance(value, dict) else [*value]
            copy[key] = odd
            yield copy


async def assert_unharmed(caller: Caller) -> None:
    """All lists can be read and the whole can be saved and restored: nothing that was stored is in the way."""
    providers = f"{caller.group}/providers"
    for url in (
        f"{caller.subscription}/resourceGroups",
        f"{caller.subscription}/resources",
        f"management.azure.com{caller.subscription}/resources?$filter=tagName eq 'a' and tagValue eq 'b'",
        f"{providers}/Microsoft.ManagedIdentity/userAssignedIdentities",
        f"{providers}/Microsoft.KeyVault/vaults",
        f"{providers}/Microsoft.Storage/storageAccounts",
        f"{providers}/Microsoft.Compute/virtualMachines",
        f"{providers}/Microsoft.Resources/deployments",
        f"{providers}/Microsoft.KeyVault/vaults/vault/secrets",
        *(f"{VAULT}/{kind}" for kind in ("secrets", "keys", "certificates")),
        *(f"{GRAPH}/{kind}" for kind in ("users", "groups", "applications", "servicePrincipals")),
        f"{BLOBS}/box?restype=container&comp=list&include=metadata",
        f"{BLOBS}/?comp=list",
    ):
        answer = await caller("GET", url)
        assert answer.status_code == 200, (url, answer.text)
        if url.startswith(BLOBS):
            ET.fromstring(answer.content)  # noqa: S314  # the lab's own
    assert Azure.restore(caller.azure.save()).settings == caller.azure.settings


async def test_bodies_of_every_wrong_form_are_refused_and_spoil_nothing(caller: Caller) -> None:
    """Each field of each request once with each kind of value, and bodies that are no objects at all."""
    requests = writes(caller)
    for method, url, good in requests:
        for body in (*BROKEN, *spoiled(good)):
            answer = await caller(method, url, body)
            assert answer.status_code < 500, (method, url, body, answer.text)
            if answer.status_code >= 400:
                assert answer.json()["error"]["message"], (method, url, body)
    await assert_unharmed(caller)


async def test_a_body_without_an_end_is_not_read(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is larger than a service takes is refused at once, however it is sent."""
    monkeypatch.setattr(bodies, "LARGEST", 1000)

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b" " * 100

    headers = {"Authorization": f"Bearer {await caller.token('management.azure.com')}"}
    url = f"https://management.azure.com{caller.group}"
    for content in (endless(), b" " * 1001):
        answer = await caller.http.put(url, content=content, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "RequestEntityTooLarge")


async def test_nested_deployments_end(caller: Caller) -> None:
    """Eleven in one another are one too many; three of which each makes a hundred of the next are too large."""
    kind = {"type": "Microsoft.Resources/deployments", "apiVersion": "2022-09-01"}

    def nested(levels: int, loop: dict[str, Any]) -> dict[str, Any]:
        if not levels:
            return {"resources": []}
        options = {"expressionEvaluationOptions": {"scope": "inner"}, "template": nested(levels - 1, loop)}
        return {
            "resources": [
                {**kind, **loop, "name": f"n{levels}", "properties": {"mode": "Incremental", **options}}
                if not loop
                else {
                    **kind,
                    "name": f"[concat('n{levels}-', copyIndex())]",
                    "copy": loop,
                    "properties": {"mode": "Incremental", **options},
                }
            ]
        }

    url = f"{caller.group}/providers/Microsoft.Resources/deployments/top"
    for template, sentence in (
        (nested(11, {}), "nested more than 10 levels deep"),
        (nested(3, {"name": "l", "count": 100}), "too large"),
    ):
        await caller("PUT", url, {"properties": {"mode": "Incremental", "template": template}})
        properties = (await caller("GET", url)).json()["properties"]
        assert properties["provisioningState"] == "Failed"
        assert sentence in json.dumps(properties["error"])
    template = nested(10, {})
    await caller("PUT", url, {"properties": {"mode": "Incremental", "template": template}})
    assert (await caller("GET", url)).json()["properties"]["provisioningState"] == "Succeeded"


async def test_a_template_that_ends_badly_has_failed(caller: Caller) -> None:
    """What goes wrong behind the first resource is the deployment's error: it does not count as a success."""
    url = f"{caller.group}/providers/Microsoft.Resources/deployments/top"
    for output in (5, {"type": "int"}, {"type": "int", "value": f"[{'not(' * 3000}1{')' * 3000}]"}):
        template = {"resources": [], "outputs": {"o": output}}
        await caller("PUT", url, {"properties": {"mode": "Incremental", "template": template}})
        properties = (await caller("GET", url)).json()["properties"]
        assert (properties["provisioningState"], properties["error"]["code"]) == ("Failed", "InvalidTemplate")


BAD_BLOBS: list[tuple[str, str, dict[str, str], int]] = [
    ("PUT", "box/a%00b", {"x_ms_blob_type": "BlockBlob"}, 400),
    ("PUT", "box/a%1Fb", {"x_ms_blob_type": "BlockBlob"}, 400),
    ("PUT", "box/..%2F..%2Fetc%2Fpasswd", {"x_ms_blob_type": "BlockBlob"}, 201),
    ("PUT", "box/%2F%2F%2e%2e/x", {"x_ms_blob_type": "BlockBlob"}, 201),
    ("PUT", "box/%FF%FE", {"x_ms_blob_type": "BlockBlob"}, 201),
    ("PUT", "box/" + "a" * 1025, {"x_ms_blob_type": "BlockBlob"}, 400),
    ("PUT", "box/meta", {"x_ms_blob_type": "BlockBlob", "x_ms_meta_a!b": "1"}, 400),
    ("PUT", "box/meta", {"x_ms_blob_type": "BlockBlob", "x_ms_meta_1": "1"}, 400),
    ("PUT", "box/meta", {"x_ms_blob_type": "BlockBlob", "x_ms_meta_": "1"}, 400),
    ("PUT", "box/page", {"x_ms_blob_type": "PageBlob"}, 400),
    ("PUT", "box/b?comp=block&blockid=***", {}, 400),
    ("PUT", "box/b?comp=blocklist", {}, 400),
    ("PUT", "%2e%2e/b", {}, 400),
    ("PUT", "%00?restype=container", {}, 400),
    ("GET", "box/good", {"Range": f"bytes={'9' * 30}-"}, 416),
    ("GET", "box/good", {"Range": "bytes=5-1"}, 416),
    ("GET", "box/good", {"Range": f"bytes=0-{2**64}"}, 206),
    ("GET", "box/good", {"Range": f"bytes={'9' * 5000}-"}, 200),
    ("GET", "box/good", {"Range": ",".join(["bytes=0-1"] * 1000)}, 200),
    ("GET", "box/good", {"If_Modified_Since": "yesterday"}, 400),
    ("GET", "box/good", {"If_Modified_Since": "Mon, 01 Jan 99999 00:00:00 GMT"}, 400),
    ("GET", "box/good", {"If_Unmodified_Since": "Mon, 01 Jan 2024 00:00:00 +999999"}, 400),
    ("GET", "box?restype=container&comp=list&maxresults=-1", {}, 400),
    ("GET", "box?restype=container&comp=list&maxresults=many", {}, 400),
    ("GET", f"box?restype=container&comp=list&maxresults={'9' * 5000}", {}, 400),
    ("GET", "box?restype=container&comp=list&prefix=%00%1f&delimiter=%ff", {}, 200),
    ("GET", "?comp=list&marker=%00", {}, 200),
]


async def test_odd_requests_for_blobs_have_answers_in_xml(caller: Caller) -> None:
    """Names, ranges, dates, metadata and queries: the answer is Azure's own, and every list stays readable."""
    assert (await caller("PUT", f"{BLOBS}/box/good", b"content", x_ms_blob_type="BlockBlob")).status_code == 201
    for method, path, headers, status in BAD_BLOBS:
        answer = await caller(method, f"{BLOBS}/{path}", b"" if method == "PUT" else None, **headers)
        assert answer.status_code == status, (method, path, headers, answer.text)
        if "xml" in answer.headers.get("Content-Type", ""):
            ET.fromstring(answer.content)  # noqa: S314  # the lab's own
        await assert_unharmed(caller)


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"<BlockList>" + b"<Latest>QQ==</Latest>" * 1500 + b"</BlockList>", 413, "RequestBodyTooLarge"),
        (b"<BlockList>" + b"<Latest>QQ==</Latest>" * 50_001 + b"</BlockList>", 400, "BlockListTooLong"),
        (b"<BlockList>" + b"<a>" * 100_000, 400, "InvalidXmlDocument"),
        (b'<!DOCTYPE a [<!ENTITY e "e">]><BlockList>&e;</BlockList>', 400, "InvalidXmlDocument"),
        (b"<BlockList><Odd>QQ==</Odd></BlockList>", 400, "InvalidBlockList"),
        (b"x" * (16 * 2**20 + 1), 413, "RequestBodyTooLarge"),
    ],
    ids=["large", "long", "deep", "entities", "odd", "body"],
)
async def test_a_list_of_blocks_makes_no_more_than_it_may(caller: Caller, body: bytes, status: int, code: str) -> None:
    """A short list that names one block often would be a blob of any size."""
    container = caller.azure.state.containers["store/box"]
    container.uncommitted["big"] = {"QQ==": b"x" * (2 * 2**20)}
    answer = await caller("PUT", f"{BLOBS}/box/big?comp=blocklist", body)
    assert (answer.status_code, answer.headers["x-ms-error-code"]) == (status, code)
    assert "big" not in container.blobs
