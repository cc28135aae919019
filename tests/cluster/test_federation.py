"""A real cluster's own tokens are good for a federated credential in the lab's Azure."""

import json

import httpx2

from cluster.harness import GROUP, LOCATION, Cluster
from podidentity_lab.directory import Directory

ISSUER = "https://kubernetes.default.svc.cluster.local"
AUDIENCE = "api://AzureADTokenExchange"


def test_a_service_accounts_token_signs_in_as_the_identity_that_trusts_it(cluster: Cluster) -> None:
    """A token signs in as an identity that trusts its subject, and is refused while the identity trusts another.

    The lab's Entra ID verifies it with the key set that this cluster publishes.
    """
    admin = cluster.admin
    made = admin.create_identity(GROUP, "federated", LOCATION)

    def trust(account: str) -> None:
        subject = f"system:serviceaccount:default:{account}"
        credential = {"issuer": ISSUER, "subject": subject, "audiences": [AUDIENCE]}
        path = f"{made['id']}/federatedIdentityCredentials/cluster"
        admin._arm("PUT", path, "2023-01-31", {"properties": credential})

    token = cluster.kubectl("create", "token", "default", "--audience", AUDIENCE).strip()
    identity = made["properties"]["clientId"]
    trust("somebody-else")
    assert sign_in(cluster, identity, token) == [700213]
    trust("default")
    assert sign_in(cluster, identity, token) is None


def forget_issuers_keys(cluster: Cluster) -> None:
    """Have the lab's Entra ID fetch issuers' keys each time, as if its half hour of caching were over."""
    transport = httpx2.HTTPTransport(uds=str(Directory(cluster.lab.directory).control))
    with httpx2.Client(base_url="http://lab/azure", transport=transport) as door:
        door.patch("/faults", json={"issuer_keys_seconds": 0}).raise_for_status()


def rotate_key(cluster: Cluster, phase: str) -> None:
    """Take one step of replacing the key with which the cluster signs tokens: publish, sign or withdraw."""
    process = cluster.lab.run("issuer", "rotate", "--name", cluster.lab.name, "--phase", phase)
    assert f"{phase}: the issuer publishes" in process.stdout, process.stderr


def published_keys(cluster: Cluster) -> set[str]:
    """Return the IDs of the keys that the API server publishes."""
    return {key["kid"] for key in json.loads(cluster.kubectl("get", "--raw", "/openid/v1/jwks"))["keys"]}


def sign_in(cluster: Cluster, identity: str, token: str) -> list[int] | None:
    """Exchange a token for one of an identity (a client ID); return the error codes, None when it succeeds."""
    form = {
        "grant_type": "client_credentials",
        "client_id": identity,
        "client_assertion": token,
        "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
        "scope": "https://vault.azure.net/.default",
    }
    url = f"https://login.microsoftonline.com/{cluster.lab.variables['LAB_TENANT_ID']}/oauth2/v2.0/token"
    codes: list[int] | None = cluster.admin._ask("POST", url, data=form).json().get("error_codes")
    return codes
