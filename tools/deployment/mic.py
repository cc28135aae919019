"""MIC's Secret and the exceptions that upstream ships: objects that the chart renders in another form."""

from deployment.settings import ADMIN_SECRET, API_VERSION, Installation, Json

KEYS = ("Cloud", "SubscriptionID", "ResourceGroup", "VMType", "TenantID", "ClientID", "ClientSecret")
"""Keys of the Secret that everybody has to fill in."""


def credentials(installation: Installation) -> Json:
    """Return the Secret to fill in: where the cluster is in Azure, and what MIC signs in with."""
    examples = {"Cloud": "AzurePublicCloud", "VMType": "vmss"}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": ADMIN_SECRET, "namespace": installation.namespace},
        "stringData": {key: examples.get(key, f"<{key}>") for key in KEYS},
    }


def exceptions(installation: Installation) -> list[Json]:
    """Return the exceptions that let MIC and AKS's add-ons ask the node's metadata service."""
    return [
        _exception("mic-exception", installation.namespace, {"app": "mic", "component": "mic"}),
        _exception("aks-addon-exception", "kube-system", {"kubernetes.azure.com/managedby": "aks"}),
    ]


def _exception(name: str, namespace: str, labels: Json) -> Json:
    return {
        "apiVersion": API_VERSION,
        "kind": "AzurePodIdentityException",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"podLabels": labels},
    }
