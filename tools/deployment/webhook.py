"""The webhook's manifests: what its chart renders, for who does not use Helm."""

import chart
from deployment import rendered
from deployment.settings import Images, Json

NAME = "workload-identity"
NAMESPACE = "azure-workload-identity-system"
TENANT = "00000000-0000-0000-0000-000000000000"
"""Stands where every user puts his tenant."""


def installation(images: Images) -> tuple[Json, ...]:
    """Return the webhook with its namespace, in which Pod Security is `restricted`."""
    repository, _, release = images.webhook.rpartition(":")
    values = {"azureTenantID": TENANT, "image": {"repository": repository, "release": release}}
    items = rendered.objects(chart.WEBHOOK, values, name=NAME, namespace=NAMESPACE)
    return (rendered.restricted_namespace(NAMESPACE), *items)
