"""Which identities a namespace may name: the rule behind `--namespace-allow-list`.

Whoever administers namespaces writes globs on whole Azure resource IDs into an annotation of the namespace. Names of
AzureIdentity objects do not count, because tenants choose them. Asked by `matching` on behalf of MIC, of NMI in managed
mode and of `explain`; without the flag nobody asks.
"""

from collections.abc import Mapping

from podidentity.core.model import redact
from podidentity.core.model.arm import fold_case
from podidentity.core.model.identities import AzureIdentity, IdentityType

ANNOTATION = "podidentity.io/allowed-identities"
"""On a Namespace: comma-separated globs, `*` stands for anything but `/`, compared without regard to case."""

AllowList = Mapping[str, str]
"""The annotation of each namespace that has it. A namespace that is not in it is allowed nothing."""

_JUDGED_ELSEWHERE = frozenset(
    {IdentityType.SERVICE_PRINCIPAL, IdentityType.SERVICE_PRINCIPAL_CERTIFICATE, IdentityType.FEDERATED}
)


def refusal(identity: AzureIdentity, permissions: AllowList, namespace: str = "") -> str | None:
    """Return why `identity` may not be used from `namespace`, by default its own; None when it may.

    An identity without a well-formed resource ID is refused: a client ID alone says nothing of whose it is. Service
    principals are not concerned: what they can do is in their Secret, and who holds that needs no identity of ours. For
    identities whose tokens come from the broker, it asks whether the pod's service account may use them.
    """
    if identity.type in _JUDGED_ELSEWHERE:
        return None
    namespace = namespace or identity.key.namespace
    if identity.arm_id is None:
        return (
            f"AzureIdentity {identity.key} has no resourceID to compare with the identities that namespace {namespace} "
            "is allowed; set its resourceID"
        )
    globs = permissions.get(namespace, "")
    if any(fits(glob, identity.resource_id) for glob in globs.split(",")):
        return None
    return (
        f"namespace {namespace} is not allowed the identity {redact.printable(identity.resource_id, 512)}; "
        f"whoever administers the namespace can add it to the annotation {ANNOTATION}"
    )


def fits(glob: str, resource_id: str) -> bool:
    """Whether a glob covers a resource ID. Both are cut at each `/`, so that `*` never reaches over one."""
    pattern, segments = (fold_case(text.strip()).split("/") for text in (glob, resource_id))
    return len(pattern) == len(segments) and all(map(_segment_fits, pattern, segments))


def _segment_fits(glob: str, text: str) -> bool:
    """Match one segment in time linear in its length: a tenant chooses it."""
    first, *pieces = glob.split("*")
    if not pieces:
        return first == text
    *middle, last = pieces
    position, end = len(first), len(text) - len(last)
    if position > end or not (text.startswith(first) and text.endswith(last)):
        return False
    for part in middle:
        start = text.find(part, position, end)
        if start < 0:
            return False
        position = start + len(part)
    return True
