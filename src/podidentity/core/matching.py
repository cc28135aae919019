"""Which identities a pod may use: its label against the bindings' selectors, bindings to identities.

Used by `assigning` (standard mode), by NMI in managed mode and by `explain`. Order is (namespace, name) of the binding,
as upstream has it (`pkg/pod`, `pkg/mic`): the first match is the pod's default identity.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
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


class Unusable(NamedTuple):
    """Why a binding has no effect on any pod."""

    code: str
    why: str


class Found(NamedTuple):
    """A binding that selects, and what it comes to."""

    binding: AzureIdentityBinding
    comes_to: AzureIdentity | Unusable


OTHERS_TOLD = 5
"""Bindings of other namespaces that are named to a pod for which there is none in its own; teams share labels."""


class Selections:
    """What pods get by the label that they carry. An empty selector selects nothing.

    The identity is looked up in the *binding's* namespace. With `force_namespaced`, or when the identity says so, pod,
    binding and identity must share one namespace. With `allowed` (`--namespace-allow-list`) that namespace must be
    allowed the identity; None asks for no permission. Bindings are found by namespace and selector, so a pod costs what
    selects it, however many others there are; pods of one namespace with one label cost it once.
    """

    def __init__(
        self,
        bindings: Iterable[AzureIdentityBinding],
        identities: Mapping[ObjectKey, AzureIdentity],
        *,
        force_namespaced: bool,
        allowed: AllowList | None = None,
    ) -> None:
        self._everywhere: defaultdict[str, list[Found]] = defaultdict(list)
        self._within: defaultdict[str, defaultdict[str, list[Found]]] = defaultdict(lambda: defaultdict(list))
        self._force_namespaced = force_namespaced
        self._known: dict[tuple[str, str], tuple[Found, ...]] = {}
        self._elsewhere: dict[str, tuple[AzureIdentityBinding, ...]] = {}
        for binding in sorted(bindings, key=lambda one: one.key):
            if binding.selector:
                found = Found(binding, usable(binding, identities, allowed))
                if force_namespaced or (isinstance(found.comes_to, AzureIdentity) and found.comes_to.namespaced):
                    self._within[binding.selector][binding.key.namespace].append(found)
                else:
                    self._everywhere[binding.selector].append(found)

    def found(self, namespace: str, selector: str) -> tuple[Found, ...]:
        """Name the bindings that select these pods, with what they come to, in the order that decides the default."""
        known = self._known.get((namespace, selector))
        if known is None:
            known = self._find(namespace, selector)
            if known:  # anybody may write any label: what selects nothing is not remembered
                self._known[namespace, selector] = known
        return known

    def of(self, pod: Pod) -> Iterator[Match | Skipped]:
        """Yield what each binding that selects `pod` comes to."""
        for binding, comes_to in self.found(pod.key.namespace, pod.selector):
            if isinstance(comes_to, Unusable):
                yield Skipped(pod.key, binding.key, comes_to.code, comes_to.why)
            else:
                yield Match(pod, binding, comes_to)

    def _find(self, namespace: str, selector: str) -> tuple[Found, ...]:
        within: Mapping[str, list[Found]] = self._within.get(selector, {})
        found = (*self._everywhere.get(selector, ()), *within.get(namespace, ()))
        if not found and within:
            if selector not in self._elsewhere:
                self._elsewhere[selector] = tuple(within[other][0].binding for other in sorted(within)[:OTHERS_TOLD])
            found = tuple(self._other(namespace, binding) for binding in self._elsewhere[selector])
        return tuple(sorted(found, key=lambda one: one.binding.key))

    def _other(self, namespace: str, binding: AzureIdentityBinding) -> Found:
        """Say of a binding of another namespace why it has no effect in this one."""
        theirs = binding.key.namespace
        if self._force_namespaced:
            why = f"it belongs to namespace {theirs} and namespaced mode is on; bind in {namespace}"
        else:
            identity = ObjectKey(theirs, binding.azure_identity)
            why = f"AzureIdentity {identity} is namespaced: only pods of {theirs} may use it"
        return Found(binding, Unusable("OtherNamespace", why))


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


def identity_refusal(identity: AzureIdentity) -> str | None:
    """Say why an identity cannot be assigned to a VM or scale set; None when it can, or need not be."""
    if identity.type == IdentityType.USER_ASSIGNED and identity.arm_id is None:
        return (
            f'AzureIdentity {identity.key}: resourceID "{redact.shown(identity.resource_id)}" is malformed; it must be '
            "/subscriptions/S/resourcegroups/G/providers/Microsoft.ManagedIdentity/userAssignedIdentities/N"
        )
    return None
