"""The lab's Azure gives what Azure gives and refuses what Azure refuses, over real TLS."""

import uuid
from collections.abc import Callable
from typing import Any

import httpx2
import pytest
from starlette.testclient import TestClient

from podidentity_lab.azure import Azure

ARM = "https://management.azure.com"
ARM_SCOPE = "https://management.azure.com//.default"
OPERATOR = "f1a07417-d97a-45cb-824c-7a7467783830"
SignIn = Callable[..., str]
Send = Callable[..., httpx2.Response]


@pytest.fixture
def owner(sign_in: SignIn) -> str:
    """A management token of the subscription's owner."""
    return sign_in(ARM_SCOPE)


@pytest.fixture
def group(azure: Azure, send: Send, owner: str) -> str:
    """A resource group."""
    path = f"{ARM}/subscriptions/{azure.settings.subscription_id}/resourceGroups/rg"
    assert send("PUT", f"{path}?api-version=2024-11-01", owner, json={"location": "eastus"}).status_code == 201
    return path


@pytest.fixture
def identity(send: Send, owner: str, group: str) -> dict[str, Any]:
    """A user-assigned identity."""
    url = f"{group}/providers/Microsoft.ManagedIdentity/userAssignedIdentities/demo?api-version=2025-05-31-preview"
    found: dict[str, Any] = send("PUT", url, owner, json={"location": "eastus"}).json()
    return found


@pytest.fixture
def machine(azure: Azure) -> str:
    """A scale set's URL; its instances are its nodes."""
    azure.add_scale_set("ss", 2)
    settings = azure.settings
    group = f"/subscriptions/{settings.subscription_id}/resourceGroups/{settings.node_resource_group}"
    return f"{ARM}{group}/providers/Microsoft.Compute/virtualMachineScaleSets/ss"


@pytest.fixture
def imds(azure: Azure, machine: str) -> TestClient:
    """The metadata service of the scale set's first instance."""
    return TestClient(azure.imds(f"{machine.removeprefix(ARM)}/virtualMachines/0"))


def allow_assigning(send: Send, owner: str, azure: Azure, identity: dict[str, Any]) -> None:
    """Give the cluster's principal Managed Identity Operator on the identity."""
    definition = (
        f"/subscriptions/{azure.settings.subscription_id}/providers/Microsoft.Authorization/roleDefinitions/{OPERATOR}"
    )
    properties = {"principalId": azure.settings.cluster.object_id, "roleDefinitionId": definition}
    url = (
        f"{ARM}{identity['id']}/providers/Microsoft.Authorization/roleAssignments/{uuid.uuid4()}?api-version=2022-04-01"
    )
    assert send("PUT", url, owner, json={"properties": properties}).status_code == 201
    assert send("PUT", url, owner, json={"properties": properties}).status_code == 200


def assign(send: Send, token: str, machine: str, identity_id: str, value: Any) -> httpx2.Response:
    """PATCH a machine's identities."""
    body = {"identity": {"type": "UserAssigned", "userAssignedIdentities": {identity_id: value}}}
    return send("PATCH", f"{machine}?api-version=2024-11-01", token, json=body)


def finish(send: Send, token: str, answer: httpx2.Response) -> None:
    """Poll an operation until it has ended."""
    while send("GET", answer.headers["Azure-AsyncOperation"], token).json()["status"] == "InProgress":
        pass


def test_a_wrong_secret_gets_the_number_that_sdks_show(azure: Azure, send: Send) -> None:
    """A wrong secret gets 401 with AADSTS7000215, and an unknown tenant AADSTS90002."""
    form = {
        "grant_type": "client_credentials",
        "client_id": azure.settings.owner.client_id,
        "client_secret": "x",
        "scope": ARM_SCOPE,
    }
    answer = send("POST", f"https://login.microsoftonline.com/{azure.settings.tenant_id}/oauth2/v2.0/token", data=form)
    assert answer.status_code == 401
    assert answer.json()["error_codes"] == [7000215]
    wrong_tenant = send("POST", f"https://login.microsoftonline.com/{uuid.uuid4()}/oauth2/v2.0/token", data=form)
    assert wrong_tenant.json()["error_codes"] == [90002]


def test_arm_wants_a_token_for_itself_and_a_role(azure: Azure, send: Send, sign_in: SignIn, group: str) -> None:
    """ARM refuses requests without a token, with another audience's, and by a principal without a role."""
    url = f"{group}?api-version=2024-11-01"
    assert send("GET", url).status_code == 401
    assert send("GET", url, sign_in("https://vault.azure.net/.default")).status_code == 401
    refused = send("GET", url, sign_in(ARM_SCOPE, azure.settings.cluster))
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "AuthorizationFailed")


def test_ids_compare_without_case_and_doubled_slashes_count_once(send: Send, owner: str, group: str) -> None:
    """azure-cli writes both spellings of IDs, and `//metadata/endpoints`."""
    spelled = group.replace("resourceGroups", "RESOURCEGROUPS").replace("/rg", "//RG")
    assert send("GET", f"{spelled}?api-version=2019-01-01", owner).json()["name"] == "rg"
    assert send("GET", f"{ARM}//metadata/endpoints?api-version=2022-09-01").json()["suffixes"]["keyVaultDns"]


def test_assigning_needs_the_operator_role_on_each_identity(
    azure: Azure, send: Send, sign_in: SignIn, owner: str, identity: dict[str, Any], machine: str
) -> None:
    """Without it the PATCH gets LinkedAuthorizationFailed, which names the identity; with it the PATCH works."""
    cluster = sign_in(ARM_SCOPE, azure.settings.cluster)
    refused = assign(send, cluster, machine, identity["id"], {})
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "LinkedAuthorizationFailed")
    assert identity["id"] in refused.json()["error"]["message"]
    allow_assigning(send, owner, azure, identity)
    finish(send, cluster, assign(send, cluster, machine, identity["id"], {}))
    shown = send("GET", f"{machine}?api-version=2024-11-01", cluster).json()["identity"]
    assert shown["userAssignedIdentities"][identity["id"]]["clientId"] == identity["properties"]["clientId"]
    finish(send, cluster, assign(send, cluster, machine, identity["id"], None))
    assert "identity" not in send("GET", f"{machine}?api-version=2024-11-01", cluster).json()


def test_an_unknown_identity_fails_the_patch(
    azure: Azure, send: Send, sign_in: SignIn, identity: dict[str, Any], machine: str
) -> None:
    """A PATCH with an identity that does not exist gets 400 FailedIdentityOperation."""
    answer = assign(send, sign_in(ARM_SCOPE, azure.settings.cluster), machine, identity["id"] + "x", {})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "FailedIdentityOperation")


def test_imds_speaks_only_for_identities_of_its_machine(
    azure: Azure, imds: TestClient, identity: dict[str, Any], machine: str
) -> None:
    """An identity of another machine gets "Identity not found"; the machine's own is found by each selector."""
    asked = {"resource": "https://vault.azure.net", "api-version": "2018-02-01"}
    own = {"client_id": identity["properties"]["clientId"]}
    url, header = "/metadata/identity/oauth2/token", {"Metadata": "true"}
    assert imds.get(url, params=asked | own, headers=header).json()["error_description"] == "Identity not found"
    azure.state.machines[machine.removeprefix(ARM).lower()].identities[identity["id"].lower()] = identity["id"]
    for selector in (own, {"msi_res_id": identity["id"].upper()}, {}):
        token = imds.get(url, params={**asked, **selector}, headers=header).json()
        assert token["resource"] == asked["resource"]
        assert all(isinstance(value, str) for value in token.values())


@pytest.mark.parametrize(
    ("headers", "query", "status"),
    [
        ({}, "api-version=2018-02-01&resource=https://vault.azure.net", 400),
        (
            {"Metadata": "true", "X-Forwarded-For": "1.1.1.1"},
            "api-version=2018-02-01&resource=https://vault.azure.net",
            400,
        ),
        ({"Metadata": "true"}, "api-version=2018-02-01&resource=r&resource=s", 400),
        ({"Metadata": "true"}, "", 400),
        ({"Metadata": "true"}, "resource=https://vault.azure.net", 400),
    ],
)
def test_imds_refuses_what_the_real_one_refuses(
    imds: TestClient, headers: dict[str, str], query: str, status: int
) -> None:
    """Without Metadata header, resource or api-version, through a proxy, or with a repeated parameter: 400."""
    assert imds.get(f"/metadata/identity/oauth2/token?{query}", headers=headers).status_code == status


def test_imds_throttles_at_twenty_a_second(imds: TestClient) -> None:
    """Of 25 requests in a second the first 20 are answered, and further ones get 429."""
    answers = [imds.get("/metadata/identity/oauth2/token", headers={"Metadata": "true"}).status_code for _ in range(25)]
    assert answers[:20] == [400] * 20
    assert 429 in answers[20:]


def test_a_vault_gives_secrets_by_its_access_policy(
    azure: Azure, send: Send, sign_in: SignIn, owner: str, group: str
) -> None:
    """Without a token the answer is a challenge, without a policy 403, and with one the newest version."""
    policy = {"tenantId": "t", "objectId": azure.settings.owner.object_id, "permissions": {"secrets": ["All"]}}
    properties = {"tenantId": "t", "sku": {}, "accessPolicies": [policy], "enableRbacAuthorization": False}
    url = f"{group}/providers/Microsoft.KeyVault/vaults/kv1?api-version=2026-02-01"
    assert send("PUT", url, owner, json={"location": "eastus", "properties": properties}).status_code == 201
    secret = "https://kv1.vault.azure.net/secrets/s1"
    challenge = send("PUT", f"{secret}?api-version=7.4")
    assert challenge.status_code == 401
    assert 'resource="https://vault.azure.net"' in challenge.headers["WWW-Authenticate"]
    mine = sign_in("https://vault.azure.net/.default")
    for value in ("old", "new"):
        assert send("PUT", f"{secret}?api-version=7.4", mine, json={"value": value}).status_code == 200
    assert send("GET", f"{secret}/?api-version=7.4", mine).json()["value"] == "new"
    assert send("GET", f"{secret}x/?api-version=7.4", mine).status_code == 404
    stranger = sign_in("https://vault.azure.net/.default", azure.settings.cluster)
    assert send("GET", f"{secret}?api-version=7.4", stranger).status_code == 403
    assert send("GET", f"{secret}?api-version=7.4", owner).status_code == 401


def test_tokens_verify_against_the_published_keys(azure: Azure, send: Send, owner: str) -> None:
    """A token is signed with RS256, by a key that the discovery document leads to."""
    import jwt  # noqa: PLC0415  # only this test plays a resource server

    found = send(
        "GET", f"https://login.microsoftonline.com/{azure.settings.tenant_id}/v2.0/.well-known/openid-configuration"
    )
    keys = jwt.PyJWKSet.from_dict(send("GET", found.json()["jwks_uri"]).json())
    key = keys[jwt.get_unverified_header(owner)["kid"]]
    claims = jwt.decode(owner, key.key, ["RS256"], audience="https://management.azure.com/")
    assert claims["appid"] == azure.settings.owner.client_id


@pytest.mark.usefixtures("group")
def test_every_request_is_logged(azure: Azure) -> None:
    """The log has who asked, for what, and the answer."""
    last = azure.log.entries[-1]
    assert (last.service, last.client_id, last.method, last.status) == (
        "arm",
        azure.settings.owner.client_id,
        "PUT",
        201,
    )
