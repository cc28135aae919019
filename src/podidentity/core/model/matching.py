"""Which identities a pod may use: its label against the bindings' selectors, bindings to identities.

Order is (namespace, name) of the binding,
as upstream has it (`pkg/pod`, `pkg/mic`): the first match is the pod's default identity.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from podidentity.core.model import allow_list, redact
from podidentity.core.model.allow_list import AllowList
from podidentity.core.model.identities import AzureIdentity, AzureIdentityBinding, IdentityType, ObjectKey
from podidentity.core.model.snapshot import Pod


@dataclass(frozen=True, slots=True)
class Match:
    """`pod` may use `identity` because of `binding`."""

    pod: Pod
    binding: AzureIdentityBinding
    identity: AzureIdentity


@dataclass(frozen=True, slots=True)
class IneffectiveBinding:
    """A binding that selects a pod and has no effect on it.

    `code` is one CamelCase word for conditions, `message` a sentence that is shown unchanged everywhere.
    """

    pod: ObjectKey
    binding: ObjectKey
    code: str
    message: str

    @property
    def subject(self) -> str:
        """The binding and the pod that the sentence concerns."""
        return f"binding {self.binding} for pod {self.pod}"


class Unusable(NamedTuple):
    """Why a binding has no effect on any pod."""

    code: str
    message: str


class BindingResult(NamedTuple):
    """A binding that selects, with its identity or the reason why it has no effect."""

    binding: AzureIdentityBinding
    result: AzureIdentity | Unusable


NEIGHBOURS_NAMED = 5
"""Bindings of other namespaces that are named to a pod for which there is none in its own; teams share labels."""


class Selections:
    """The identities that pods get by the label that they carry. An empty selector selects nothing.

    The identity is looked up in the *binding's* namespace. With `force_namespaced`, or when the identity says so,
    pod, binding and identity must share one namespace. With `permissions` (`--namespace-allow-list`) the namespaces
    of identity and pod must both be allowed the identity; None: no permission is needed. Bindings are found by
    namespace and selector: a pod costs what selects it, however many others there are, and pods of one namespace with
    one label cost it once.
    """

    def __init__(
        self,
        bindings: Iterable[AzureIdentityBinding],
        identities: Mapping[ObjectKey, AzureIdentity],
        *,
        force_namespaced: bool,
        permissions: AllowList | None = None,
    ) -> None:
        self._everywhere: defaultdict[str, list[BindingResult]] = defaultdict(list)
        self._by_namespace: defaultdict[str, defaultdict[str, list[BindingResult]]] = defaultdict(
            lambda: defaultdict(list)
        )
        self._force_namespaced = force_namespaced
        self._permissions = permissions
        self._cache: dict[tuple[str, str], tuple[BindingResult, ...]] = {}
        self._neighbours: dict[str, tuple[AzureIdentityBinding, ...]] = {}
        for binding in sorted(bindings, key=lambda item: item.key):
            if binding.selector:
                entry = BindingResult(binding, usable(binding, identities, permissions))
                if force_namespaced or (isinstance(entry.result, AzureIdentity) and entry.result.namespaced):
                    self._by_namespace[binding.selector][binding.key.namespace].append(entry)
                else:
                    self._everywhere[binding.selector].append(entry)

    def selecting(self, namespace: str, selector: str) -> tuple[BindingResult, ...]:
        """Return the bindings that select these pods with their results, in the order that decides the default."""
        entries = self._cache.get((namespace, selector))
        if entries is None:
            entries = self._find(namespace, selector)
            if entries:  # anybody may write any label: what selects nothing is not remembered
                self._cache[namespace, selector] = entries
        return entries

    def results_for(self, pod: Pod) -> Iterator[Match | IneffectiveBinding]:
        """Yield the result of each binding that selects `pod`."""
        for binding, result in self.selecting(pod.key.namespace, pod.selector):
            if isinstance(result, Unusable):
                yield IneffectiveBinding(pod.key, binding.key, result.code, result.message)
            else:
                yield Match(pod, binding, result)

    def _find(self, namespace: str, selector: str) -> tuple[BindingResult, ...]:
        namespaced: Mapping[str, list[BindingResult]] = self._by_namespace.get(selector, {})
        entries = tuple(
            self._permitted(namespace, entry)
            for entry in (*self._everywhere.get(selector, ()), *namespaced.get(namespace, ()))
        )
        if not entries and namespaced:
            if selector not in self._neighbours:
                self._neighbours[selector] = tuple(
                    namespaced[neighbour][0].binding for neighbour in sorted(namespaced)[:NEIGHBOURS_NAMED]
                )
            entries = tuple(self._other(namespace, binding) for binding in self._neighbours[selector])
        return tuple(sorted(entries, key=lambda entry: entry.binding.key))

    def _permitted(self, namespace: str, selection: BindingResult) -> BindingResult:
        """Return a binding with its result for pods of `namespace`, which must be allowed the identity, too."""
        binding, result = selection
        if self._permissions is None or isinstance(result, Unusable) or result.key.namespace == namespace:
            return selection
        message = allow_list.refusal(result, self._permissions, namespace)
        return selection if message is None else BindingResult(binding, Unusable("NotAllowed", message))

    def _other(self, namespace: str, binding: AzureIdentityBinding) -> BindingResult:
        """Return why a binding of another namespace has no effect in this one."""
        owner = binding.key.namespace
        if self._force_namespaced:
            message = f"it belongs to namespace {owner} and namespaced mode is on; bind in {namespace}"
        else:
            identity = ObjectKey(owner, binding.azure_identity)
            message = f"AzureIdentity {identity} is namespaced: only pods of {owner} may use it"
        return BindingResult(binding, Unusable("OtherNamespace", message))


def usable(
    binding: AzureIdentityBinding, identities: Mapping[ObjectKey, AzureIdentity], permissions: AllowList | None
) -> AzureIdentity | Unusable:
    """Return a binding's identity, whatever the pod, or why it cannot be used."""
    identity = identities.get(ObjectKey(binding.key.namespace, binding.azure_identity))
    if identity is None:
        return Unusable(
            "IdentityNotFound",
            f'AzureIdentity "{redact.printable(binding.azure_identity)}" not found in namespace '
            f"{binding.key.namespace}; create it there or correct azureIdentity",
        )
    message = None if permissions is None else allow_list.refusal(identity, permissions)
    return identity if message is None else Unusable("NotAllowed", message)


def identity_refusal(identity: AzureIdentity) -> str | None:
    """Return why an identity cannot be assigned to a VM or scale set; None when it can, or need not be."""
    if identity.type == IdentityType.USER_ASSIGNED and identity.arm_id is None:
        return (
            f'AzureIdentity {identity.key}: resourceID "{redact.printable(identity.resource_id)}" is malformed; '
            "it must be /subscriptions/S/resourcegroups/G/providers/Microsoft.ManagedIdentity/userAssignedIdentities/N"
        )
    return None
