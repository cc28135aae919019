"""ARM resource IDs and provider IDs as values: which identity, and which VM or scale set a node is.

ARM compares IDs without case (docs: learn.microsoft.com/azure/azure-resource-manager/management/resource-name-rules);
az itself writes `resourcegroups` and `resourceGroups`. Values therefore compare by their lower-case parts and keep the
text as it was written, which is what goes back to ARM.
"""

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

_SEGMENT = r"[^/?#%\\\s]+"
_IDENTITY_ID = re.compile(
    rf"/subscriptions/({_SEGMENT})/resourcegroups/({_SEGMENT})"
    rf"/providers/microsoft\.managedidentity/userassignedidentities/({_SEGMENT})",
    re.IGNORECASE | re.ASCII,
)
_PROVIDER_ID = re.compile(
    rf"azure:///?subscriptions/({_SEGMENT})/resourcegroups/({_SEGMENT})"
    rf"/providers/microsoft\.compute/(virtualmachinescalesets|virtualmachines)/({_SEGMENT})(?:/virtualmachines/{_SEGMENT})?",
    re.IGNORECASE | re.ASCII,
)


_LONGEST = 512  # 36 for a subscription, 90 for a group, 128 for a name, and the words between


@dataclass(frozen=True, slots=True, order=True)
class IdentityId:
    """A user-assigned identity in ARM."""

    subscription: str
    group: str
    name: str
    text: str = field(compare=False, repr=False)

    def __str__(self) -> str:
        return self.text


def parse_identity_id(text: str) -> IdentityId | None:
    """Read `/subscriptions/S/resourcegroups/G/providers/Microsoft.ManagedIdentity/userAssignedIdentities/N`, any case.

    None when `text` is anything else, or too long: tenants write it, and what was read is remembered.
    """
    return _parsed(text) if len(text) <= _LONGEST else None


@functools.lru_cache(maxsize=16384)  # a plan asks for each pod's again and again
def _parsed(text: str) -> IdentityId | None:
    match = _IDENTITY_ID.fullmatch(text)
    if match is None:
        return None
    subscription, group, name = map(folded, match.groups())
    return IdentityId(subscription, group, name, text)


def folded(text: str) -> str:
    """Lower-case, but nothing becomes ASCII that is not: the Kelvin sign in an ID must not make it somebody else's."""
    return "".join(one if one.lower().isascii() and not one.isascii() else one.lower() for one in text)


@dataclass(frozen=True, slots=True, order=True)
class VirtualMachine:
    """A node that is a VM of its own."""

    subscription: str
    group: str
    name: str
    written: tuple[str, str, str] = field(compare=False, repr=False, default=("", "", ""))

    @property
    def path(self) -> str:
        """The ARM resource ID, as it was written."""
        return _path(self.written, "virtualMachines")

    def __str__(self) -> str:
        return f"VM {self.name}"


@dataclass(frozen=True, slots=True, order=True)
class ScaleSet:
    """A scale set: all its nodes share its identities."""

    subscription: str
    group: str
    name: str
    written: tuple[str, str, str] = field(compare=False, repr=False, default=("", "", ""))

    @property
    def path(self) -> str:
        """The ARM resource ID, as it was written."""
        return _path(self.written, "virtualMachineScaleSets")

    def __str__(self) -> str:
        return f"scale set {self.name}"


Target = VirtualMachine | ScaleSet
"""The Azure side of a node: what an identity is put on."""


@dataclass(frozen=True, slots=True)
class TargetState:
    """What ARM last said of a target.

    `identities` are the user-assigned ones on it, `client_ids` what ARM says their client IDs are (lower case);
    `others`: there are further ones, of a form that we do not know;
    `gone` is a target that does not exist or is being deleted: it gets no PATCH. `busy`: it is being changed, and what
    it says of client IDs may be incomplete.
    """

    identities: frozenset[IdentityId] = frozenset()
    client_ids: tuple[tuple[IdentityId, str], ...] = ()
    system_assigned: bool = False
    others: bool = False
    gone: bool = False
    busy: bool = False


def client_ids(states: Iterable[TargetState]) -> dict[IdentityId, str]:
    """Say which client ID (lower case) each identity has, as ARM tells it; absent: ARM has not said."""
    return {identity: told for state in states for identity, told in state.client_ids if told}


def virtual_machine(subscription: str, group: str, name: str) -> VirtualMachine:
    """Name a VM; compares without case."""
    return VirtualMachine(subscription.lower(), group.lower(), name.lower(), (subscription, group, name))


def scale_set(subscription: str, group: str, name: str) -> ScaleSet:
    """Name a scale set; compares without case."""
    return ScaleSet(subscription.lower(), group.lower(), name.lower(), (subscription, group, name))


@functools.lru_cache(maxsize=8192)  # likewise, for each node's
def target_of(node_name: str, provider_id: str, subscription: str, group: str) -> Target:
    """Say which VM or scale set a node is.

    With an empty or foreign provider ID it is a VM named like the node, in the `subscription` and `group` of
    azure.json, as upstream has it (`pkg/cloudprovider/cloudprovider.go`).
    """
    match = _PROVIDER_ID.fullmatch(provider_id)
    if match is None:
        return virtual_machine(subscription, group, node_name)
    owner, owner_group, kind, name = match.groups()
    make = scale_set if kind.lower() == "virtualmachinescalesets" else virtual_machine
    return make(owner, owner_group, name)


def _path(written: tuple[str, str, str], kind: str) -> str:
    subscription, group, name = written
    return f"/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.Compute/{kind}/{name}"
