"""Which identities a pod may use: its label against the bindings' selectors, bindings to identities.

Used by `assigning` (standard mode), by NMI in managed mode and by `explain`. Order is (namespace, name) of the binding,
as upstream has it (`pkg/pod`, `pkg/mic`): the first match is the pod's default identity.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from podidentity.core import allowing, redact
from podidentity.core.allowing import AllowList
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
    """A binding that selects a pod and has no effect on it.

    `code` is one CamelCase word for conditions, `why` a sentence that is shown unchanged everywhere.
    """

    pod: ObjectKey
    binding: ObjectKey
    code: str
    why: str

    @property
    def about(self) -> str:
        """What the sentence is about."""
        return f"binding {self.binding} for pod {self.pod}"


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
    allowed: AllowList | None = None,
) -> Iterable[Match | Skipped]:
    """Yield what each binding that selects `pod` comes to, in the order that decides the default identity.

    The identity is looked up in the *binding's* namespace. With `force_namespaced`, or when the identity says so, pod,
    binding and identity must share one namespace. With `allowed` (`--namespace-allow-list`) that namespace must be
    allowed the identity; None asks for no permission.
    """
    for binding in bindings.get(pod.selector, ()) if pod.selector else ():
        if force_namespaced and pod.key.namespace != binding.key.namespace:
            yield Skipped(pod.key, binding.key, "OtherNamespace", _other_namespace(pod, binding))
            continue
        found = usable(binding, identities, allowed)
        if isinstance(found, Unusable):
            yield Skipped(pod.key, binding.key, found.code, found.why)
        elif found.namespaced and pod.key.namespace != found.key.namespace:
            why = f"AzureIdentity {found.key} is namespaced: only pods of {found.key.namespace} may use it"
            yield Skipped(pod.key, binding.key, "OtherNamespace", why)
        else:
            yield Match(pod, binding, found)


class Unusable(NamedTuple):
    """Why a binding has no effect on any pod."""

    code: str
    why: str


def usable(
    binding: AzureIdentityBinding, identities: Mapping[ObjectKey, AzureIdentity], allowed: AllowList | None
) -> AzureIdentity | Unusable:
    """Find a binding's identity, whatever the pod."""
    identity = identities.get(ObjectKey(binding.key.namespace, binding.azure_identity))
    if identity is None:
        return Unusable(
            "IdentityNotFound",
            f'AzureIdentity "{redact.shown(binding.azure_identity)}" not found in namespace {binding.key.namespace}; '
            f"create it there or correct azureIdentity",
        )
    why = None if allowed is None else allowing.refusal(identity, allowed)
    return identity if why is None else Unusable("NotAllowed", why)


def _other_namespace(pod: Pod, binding: AzureIdentityBinding) -> str:
    return f"it belongs to namespace {binding.key.namespace} and namespaced mode is on; bind in {pod.key.namespace}"


def identity_refusal(identity: AzureIdentity) -> str | None:
    """Say why an identity cannot be assigned to a VM or scale set; None when it can, or need not be."""
    if identity.type == IdentityType.USER_ASSIGNED and identity.arm_id is None:
        return (
            f'AzureIdentity {identity.key}: resourceID "{redact.shown(identity.resource_id)}" is malformed; it must be '
            "/subscriptions/S/resourcegroups/G/providers/Microsoft.ManagedIdentity/userAssignedIdentities/N"
        )
    return None
