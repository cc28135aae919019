"""Which identities a namespace may name: the rule behind `--namespace-allow-list`.

Whoever administers namespaces writes globs on whole Azure resource IDs into an annotation of the namespace. Names of
AzureIdentity objects do not count, because tenants choose them. Asked by `matching` on behalf of MIC, of NMI in managed
mode and of `explain`; without the flag nobody asks.
"""

from collections.abc import Mapping

from podidentity.core import redact
from podidentity.core.identities import AzureIdentity, IdentityType

ANNOTATION = "podidentity.io/allowed-identities"
"""On a Namespace: comma-separated globs, `*` stands for anything but `/`, compared without regard to case."""

AllowList = Mapping[str, str]
"""The annotation of each namespace that has it. A namespace that is not in it is allowed nothing."""

_SERVICE_PRINCIPALS = frozenset({IdentityType.SERVICE_PRINCIPAL, IdentityType.SERVICE_PRINCIPAL_CERTIFICATE})


def refusal(identity: AzureIdentity, allowed: AllowList) -> str | None:
    """Say why `identity` may not be used from its namespace; None when it may.

    An identity without a well-formed resource ID is refused: a client ID alone says nothing of whose it is. Service
    principals are not concerned: what they can do is in their Secret, and who holds that needs no identity of ours.
    """
    if identity.type in _SERVICE_PRINCIPALS:
        return None
    namespace = identity.key.namespace
    if identity.arm_id is None:
        return (
            f"AzureIdentity {identity.key} has no resourceID to compare with the identities that namespace {namespace} "
            "is allowed; set its resourceID"
        )
    globs = allowed.get(namespace, "")
    if any(fits(glob, identity.resource_id) for glob in globs.split(",")):
        return None
    return (
        f"namespace {namespace} is not allowed the identity {redact.shown(identity.resource_id, 512)}; "
        f"whoever administers the namespace can add it to the annotation {ANNOTATION}"
    )


def fits(glob: str, resource_id: str) -> bool:
    """Say whether a glob covers a resource ID. Both are cut at each `/`, so that `*` never reaches over one."""
    wanted, given = (_folded(text.strip()).split("/") for text in (glob, resource_id))
    return len(wanted) == len(given) and all(map(_segment_fits, wanted, given))


def _segment_fits(glob: str, text: str) -> bool:
    """Match one segment in time linear in its length: a tenant chooses it."""
    first, *rest = glob.split("*")
    if not rest:
        return first == text
    *middle, last = rest
    at, end = len(first), len(text) - len(last)
    if at > end or not (text.startswith(first) and text.endswith(last)):
        return False
    for part in middle:
        found = text.find(part, at, end)
        if found < 0:
            return False
        at = found + len(part)
    return True


def _folded(text: str) -> str:
    """Lower-case ASCII and nothing else: the Kelvin sign must not pass for a `k`."""
    return text.encode().lower().decode()
