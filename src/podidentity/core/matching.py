"""Which identities a pod may use: its label against the bindings' selectors, bindings to identities.

Used by `assigning` (standard mode), by NMI in managed mode and by `explain`. Order is (namespace, name) of the binding,
as upstream has it (`pkg/pod`, `pkg/mic`): the first match is the pod's default identity.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from podidentity.core.cluster import Pod
from podidentity.core.identities import AzureIdentity, AzureIdentityBinding, IdentityType, ObjectKey


@dataclass(frozen=True, slots=True)
class Match:
    """`pod` may use `identity` because of `binding`."""

    pod: Pod
    binding: AzureIdentityBinding
    identity: AzureIdentity


@dataclass(frozen=True, slots=True)
class Skipped:
    """Something that looks as if it should take effect and does not; `why` is shown unchanged everywhere."""

    about: str
    why: str


BindingsBySelector = Mapping[str, Sequence[AzureIdentityBinding]]


def by_selector(bindings: Iterable[AzureIdentityBinding]) -> BindingsBySelector:
    """Index bindings by selector, each list in (namespace, name) order. An empty selector selects nothing."""
    index: defaultdict[str, list[AzureIdentityBinding]] = defaultdict(list)
    for binding in sorted(bindings, key=lambda binding: binding.key):
        if binding.selector:
            index[binding.selector].append(binding)
    return dict(index)


def matches(
    pod: Pod,
    bindings: BindingsBySelector,
    identities: Mapping[ObjectKey, AzureIdentity],
    *,
    force_namespaced: bool,
) -> Iterable[Match | Skipped]:
    """Yield what each binding that selects `pod` comes to, in the order that decides the default identity.

    The identity is looked up in the *binding's* namespace. With `force_namespaced`, or when the identity says so, pod,
    binding and identity must share one namespace.
    """
    for binding in bindings.get(pod.selector, ()) if pod.selector else ():
        identity = identities.get(ObjectKey(binding.key.namespace, binding.azure_identity))
        why = _refusal(pod, binding, identity, force_namespaced=force_namespaced)
        if identity is None or why is not None:
            yield Skipped(f"binding {binding.key} for pod {pod.key}", why or "")
        else:
            yield Match(pod, binding, identity)


def _refusal(
    pod: Pod, binding: AzureIdentityBinding, identity: AzureIdentity | None, *, force_namespaced: bool
) -> str | None:
    if force_namespaced and pod.key.namespace != binding.key.namespace:
        return f"it belongs to namespace {binding.key.namespace} and namespaced mode is on; bind in {pod.key.namespace}"
    if identity is None:
        return (
            f'AzureIdentity "{binding.azure_identity}" not found in namespace {binding.key.namespace}; '
            f"create it there or correct azureIdentity"
        )
    if identity.namespaced and pod.key.namespace != identity.key.namespace:
        return f"AzureIdentity {identity.key} is namespaced: only pods of {identity.key.namespace} may use it"
    return None


def identity_refusal(identity: AzureIdentity) -> str | None:
    """Say why an identity cannot be assigned to a VM or scale set; None when it can, or need not be."""
    if identity.type == IdentityType.USER_ASSIGNED and identity.arm_id is None:
        return (
            f'AzureIdentity {identity.key}: resourceID "{identity.resource_id}" is malformed; it must be '
            "/subscriptions/S/resourcegroups/G/providers/Microsoft.ManagedIdentity/userAssignedIdentities/N"
        )
    return None
