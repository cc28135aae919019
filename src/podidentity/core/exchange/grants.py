"""Which caller may have tokens of which identity: the broker's own list first, then Kubernetes' authorization.

The permission has AKS's spelling, so that its ClusterRoles work unchanged: verb `use-managed-identity` on resource
CLIENT_ID of API group `cid.wi.aks.azure.com`, cluster-wide.
"""

from collections.abc import Collection, Mapping
from typing import Any

from podidentity.core.exchange.callers import Caller
from podidentity.core.exchange.requests import Refusal

GROUP = "cid.wi.aks.azure.com"
VERB = "use-managed-identity"


def refuse_identity(client_id: str, identities: Collection[str]) -> Refusal | None:
    """Return a refusal when `identities` is a list (of lower-case client IDs) that lacks `client_id`; empty: all."""
    if not identities or client_id in identities:
        return None
    message = (
        f"this broker gives no tokens of identity {client_id}; add it to the broker's allowedIdentities, "
        "or ask the broker that has it"
    )
    return Refusal(403, "unauthorized_client", message)


def access_review(caller: Caller, client_id: str) -> Mapping[str, Any]:
    """Return the `spec` of the SubjectAccessReview that asks whether `caller` may use an identity."""
    return {
        "user": caller.username,
        "uid": caller.uid,
        "groups": list(caller.groups),
        "extra": {key: list(texts) for key, texts in caller.extra},
        "resourceAttributes": {"verb": VERB, "group": GROUP, "resource": client_id},
    }


def refuse_access(status: Mapping[str, Any], caller: Caller, client_id: str) -> Refusal | None:
    """Return a refusal unless a SubjectAccessReview's `status` allows it."""
    if status.get("allowed") is True and status.get("denied") is not True:
        return None
    message = (
        f"service account {caller.key} may not use identity {client_id}; bind it to a ClusterRole with verb {VERB}, "
        f"apiGroup {GROUP}, resource {client_id}"
    )
    return Refusal(403, "unauthorized_client", message)
