"""A real cluster's own tokens are good for a federated credential in the lab's Azure."""

from cluster.harness import GROUP, LOCATION, Cluster

ISSUER = "https://kubernetes.default.svc.cluster.local"
AUDIENCE = "api://AzureADTokenExchange"


def test_a_service_accounts_token_signs_in_as_the_identity_that_trusts_it(cluster: Cluster) -> None:
    """Verified with the key set that this cluster publishes; the same token says nothing for another subject."""
    admin = cluster.admin
    made = admin.create_identity(GROUP, "federated", LOCATION)

    def trust(account: str) -> None:
        subject = f"system:serviceaccount:default:{account}"
        credential = {"issuer": ISSUER, "subject": subject, "audiences": [AUDIENCE]}
        path = f"{made['id']}/federatedIdentityCredentials/cluster"
        admin._arm("PUT", path, "2023-01-31", {"properties": credential})

    token = cluster.kubectl("create", "token", "default", "--audience", AUDIENCE).strip()
    form = {
        "grant_type": "client_credentials",
        "client_id": made["properties"]["clientId"],
        "client_assertion": token,
        "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
        "scope": "https://vault.azure.net/.default",
    }
    url = f"https://login.microsoftonline.com/{cluster.lab.variables['LAB_TENANT_ID']}/oauth2/v2.0/token"
    trust("somebody-else")
    assert admin._ask("POST", url, data=form).json()["error_codes"] == [700213]
    trust("default")
    answer = admin._ask("POST", url, data=form)
    assert answer.status_code == 200, answer.text
