"""The environment in which a person's or a program's own tools work with a lab. Called by the CLI and the demo."""

from podidentity.lab.directory import Directory

_DIRECT = "127.0.0.1,localhost"  # the Kubernetes API and everything else of the machine's own
_TRUST = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS")
_FACTS = (
    "tenant_id",
    "subscription_id",
    "location",
    "node_resource_group",
    "owner_client_id",
    "owner_client_secret",
    "cluster_client_id",
    "logs",
    "name",
)


def variables(lab: Directory) -> dict[str, str]:
    """What a shell needs: kubectl's file, the proxy and the certificates, and the lab's own facts.

    `lab` must be ready: without its facts there is nothing to say.
    """
    facts = lab.facts() or {}
    proxy = f"http://127.0.0.1:{facts['gateway_port']}"
    found = {"KUBECONFIG": str(lab.kubeconfig)}
    for name, value in (("HTTPS_PROXY", proxy), ("HTTP_PROXY", proxy), ("NO_PROXY", _DIRECT)):
        found |= {name: value, name.lower(): value}  # curl reads only http_proxy, others only HTTP_PROXY
    found |= dict.fromkeys(_TRUST, str(lab.ca))
    found |= {f"LAB_{name.upper()}": str(facts[name]) for name in _FACTS}
    # az keeps who is signed in: not in the user's own profile.
    return {**found, "AZURE_CONFIG_DIR": str(lab.path / "az"), "LAB_DIRECTORY": str(lab.path)}
