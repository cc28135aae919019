"""Who is exempt, and what an identity may be used for: the rules that are not about matching or choosing."""

import re
from collections.abc import Collection, Iterable

from podidentity.core.model.identities import AzureIdentity, AzurePodIdentityException
from podidentity.core.model.snapshot import Pod

MIC_SERVICE_ACCOUNTS = frozenset({"aad-pod-id-mic-service-account", "aad-pod-identity-mic"})
"""What `deploy/` and the chart call it."""

_SECRET_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,252}")  # Kubernetes' own rule: no name of a Secret has a slash


def is_excepted(pod: Pod, exceptions: Iterable[AzurePodIdentityException]) -> bool:
    """Whether an exception of the pod's namespace names any of its labels; values compare without case."""
    return any(
        pod.labels.get(name, "").lower() == value.lower()
        for exception in exceptions
        if exception.key.namespace == pod.key.namespace
        for name, value in exception.pod_labels.items()
        if name in pod.labels
    )


def is_mic(pod: Pod, namespace: str) -> bool:
    """Whether `pod` is MIC itself, which must reach IMDS before any identity exists.

    Upstream exempts every owner called `mic-...`, `microservice-...` among them; here namespace, exact ReplicaSet name
    and service account must all fit.
    """
    template_hash = pod.labels.get("pod-template-hash", "")
    owners = {f"mic-{template_hash}", f"aad-pod-identity-mic-{template_hash}"}
    return (
        pod.key.namespace == namespace
        and template_hash != ""
        and pod.owner is not None
        and pod.owner.kind == "ReplicaSet"
        and pod.owner.name in owners
        and pod.service_account in MIC_SERVICE_ACCOUNTS
    )


def secret_refusal(identity: AzureIdentity, allowed_namespaces: Collection[str]) -> str | None:
    """Return why the identity's Secret may not be read; None when it may.

    A Secret of another namespace together with `adEndpoint` would carry that Secret to an address of a tenant's choice.
    So would a name that walks there (`../../other/secrets/s`): it becomes part of a path.
    """
    secret = identity.client_password
    if secret is None:
        return f"AzureIdentity {identity.key} has no clientPassword; name the Secret that holds it"
    if _SECRET_NAME.fullmatch(secret.name) is None:
        return f'AzureIdentity {identity.key}: "{secret.name}" is no name of a Secret; correct clientPassword'
    if secret.namespace == identity.key.namespace or secret.namespace in allowed_namespaces:
        return None
    return (
        f"AzureIdentity {identity.key} names Secret {secret} of another namespace; "
        f"move the Secret to {identity.key.namespace} or start NMI with --secret-namespaces={secret.namespace}"
    )
