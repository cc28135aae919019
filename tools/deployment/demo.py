"""Upstream's small demonstration: an identity, a binding, and its own demo image as the pod.

The words in capitals are to be replaced by the user.
"""

from deployment.settings import API_VERSION, Images, Json

LINUX: Json = {"kubernetes.io/os": "linux"}
SELECTOR = "demo"
IDENTITY = "demo-aad1"


def identity() -> Json:
    """Return the AzureIdentity to fill in."""
    resource = "providers/Microsoft.ManagedIdentity/userAssignedIdentities/IDENTITY_NAME"
    return {
        "apiVersion": API_VERSION,
        "kind": "AzureIdentity",
        "metadata": {"name": IDENTITY},
        "spec": {
            "type": 0,
            "resourceID": f"/subscriptions/SUBSCRIPTION_ID/resourcegroups/RESOURCE_GROUP/{resource}",
            "clientID": "CLIENT_ID",
        },
    }


def binding() -> Json:
    """Return the binding of the demo's pods."""
    return {
        "apiVersion": API_VERSION,
        "kind": "AzureIdentityBinding",
        "metadata": {"name": "demo-azure-id-binding"},
        "spec": {"azureIdentity": IDENTITY, "selector": SELECTOR},
    }


def deployment(images: Images) -> Json:
    """Return a Deployment whose pod asks for a token with Azure's Go SDK and lists the virtual machines it may see."""
    labels = {"app": "demo", "aadpodidbinding": SELECTOR}
    container = {
        "name": "demo",
        "image": images.demo,
        "args": ["--subscriptionid=SUBSCRIPTION_ID", "--clientid=CLIENT_ID", "--resourcegroup=RESOURCE_GROUP"],
        "env": [
            _from_field("MY_POD_NAME", "metadata.name"),
            _from_field("MY_POD_NAMESPACE", "metadata.namespace"),
            _from_field("MY_POD_IP", "status.podIP"),
        ],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "demo", "namespace": "default", "labels": labels},
        "spec": {
            "selector": {"matchLabels": {"app": "demo"}},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [container], "nodeSelector": LINUX}},
        },
    }


def _from_field(name: str, path: str) -> Json:
    """Return an environment variable from the pod's own fields."""
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}
