"""ARM resource IDs and provider IDs as values: which identity, and which VM or scale set a node is.

ARM compares IDs without case (docs: learn.microsoft.com/azure/azure-resource-manager/management/resource-name-rules);
az itself writes `resourcegroups` and `resourceGroups`. Values therefore compare by their lower-case parts and keep the
text as it was written, which is what goes back to ARM.
"""

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

from podidentity.core.model import steps
from podidentity.core.model.steps import Steps

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
    _hash: int = field(init=False, compare=False, repr=False)
    """Computed once: sets of thousands are compared and joined with each step of a scale set."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "_hash", hash((self.subscription, self.group, self.name)))

    def __hash__(self) -> int:
        return self._hash

    def __str__(self) -> str:
        return self.text


def parse_identity_id(text: str) -> IdentityId | None:
    """Read `/subscriptions/S/resourcegroups/G/providers/Microsoft.ManagedIdentity/userAssignedIdentities/N`, any case.

    None when `text` is anything else, or too long: tenants write it, and what was read is remembered.
    """
    return _parse(text) if len(text) <= _LONGEST else None


@functools.lru_cache(maxsize=16384)  # a plan asks for each pod's again and again
def _parse(text: str) -> IdentityId | None:
    match = _IDENTITY_ID.fullmatch(text)
    if match is None:
        return None
    subscription, group, name = map(fold_case, match.groups())
    return IdentityId(subscription, group, name, text)


def fold_case(text: str) -> str:
    """Return an ID, or a part of one, in the form in which IDs are compared: two spellings of one have the same.

    Letters become lower case where that can be undone. The Kelvin sign stays: its lower case is a plain `k`, and what a
    tenant writes with it must not pass for somebody else's ID.
    """
    if text.isascii():
        return text.lower()
    return "".join(lower if (lower := character.lower()).upper() == character else character for character in text)


@dataclass(frozen=True, slots=True, order=True)
class _Compute:
    """What carries identities in ARM. Names are compared without case; `spelling` keeps them as they were written."""

    subscription: str
    group: str
    name: str
    spelling: tuple[str, str, str] = field(compare=False, repr=False, default=("", "", ""))

    resource_type: ClassVar[str]
    noun: ClassVar[str]

    @property
    def path(self) -> str:
        """The ARM resource ID, as it was written."""
        return _path(self.spelling, self.resource_type)

    def __str__(self) -> str:
        return f"{self.noun} {self.name}"


class VirtualMachine(_Compute):
    """A node that is a VM of its own."""

    __slots__ = ()
    resource_type, noun = "virtualMachines", "VM"


class ScaleSet(_Compute):
    """A scale set: all its nodes share its identities."""

    __slots__ = ()
    resource_type, noun = "virtualMachineScaleSets", "scale set"


Target = VirtualMachine | ScaleSet
"""The Azure side of a node: what an identity is put on."""


@dataclass(frozen=True, slots=True)
class ArmState:
    """A target as ARM last described it.

    `identities` are the user-assigned ones on it, `client_ids` their client IDs according to ARM (lower case);
    `has_unknown_identities`: there are further ones, of a form that we do not know; `is_gone` is a target that does
    not exist or is being deleted: it gets no PATCH. `is_busy`: it is being changed, and what it says of client IDs
    may be incomplete.
    """

    identities: frozenset[IdentityId] = frozenset()
    client_ids: tuple[tuple[IdentityId, str], ...] = ()
    system_assigned: bool = False
    has_unknown_identities: bool = False
    is_gone: bool = False
    is_busy: bool = False


def client_ids(states: Iterable[ArmState]) -> dict[IdentityId, str]:
    """Return the client ID (lower case) of each identity as ARM reports it; absent when ARM has not."""
    return steps.finish(client_ids_in_steps(states))


def client_ids_in_steps(states: Iterable[ArmState]) -> Steps[dict[IdentityId, str]]:
    """Return the same, in steps: thousands of identities may be on each scale set."""
    result: dict[IdentityId, str] = {}
    for state in states:
        result.update((identity, client_id) for identity, client_id in state.client_ids if client_id)
        yield
    return result


def virtual_machine(subscription: str, group: str, name: str) -> VirtualMachine:
    """Return a VM; it compares without case."""
    return VirtualMachine(fold_case(subscription), fold_case(group), fold_case(name), (subscription, group, name))


def scale_set(subscription: str, group: str, name: str) -> ScaleSet:
    """Return a scale set; it compares without case."""
    return ScaleSet(fold_case(subscription), fold_case(group), fold_case(name), (subscription, group, name))


@functools.lru_cache(maxsize=8192)  # likewise, for each node's
def target_of(node_name: str, provider_id: str, subscription: str, group: str) -> Target:
    """Return the VM or scale set that a node is.

    With an empty or foreign provider ID it is a VM named like the node, in the `subscription` and `group` of
    azure.json, as upstream has it (`pkg/cloudprovider/cloudprovider.go`).
    """
    match = _PROVIDER_ID.fullmatch(provider_id)
    if match is None:
        return virtual_machine(subscription, group, node_name)
    owner, owner_group, kind, name = match.groups()
    make = scale_set if kind.lower() == "virtualmachinescalesets" else virtual_machine
    return make(owner, owner_group, name)


def _path(spelling: tuple[str, str, str], kind: str) -> str:
    subscription, group, name = spelling
    return f"/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.Compute/{kind}/{name}"
