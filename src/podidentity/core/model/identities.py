"""The four custom resources as values, free of spelling and wire format (that is `crd`).

Fields and defaults: aad-pod-identity v1.8.17,
`pkg/apis/aadpodidentity/v1/types.go`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import NamedTuple

from podidentity.core.model import arm

POD_LABEL = "aadpodidbinding"
"""A pod takes part when it carries this label; the value is compared with each binding's selector."""


class ObjectKey(NamedTuple):
    """A namespace and a name; sorts in the order in which bindings are matched."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class IdentityType(IntEnum):
    """`spec.type` of an AzureIdentity. Other numbers exist in the wild and are refused when a token is asked."""

    USER_ASSIGNED = 0
    SERVICE_PRINCIPAL = 1
    SERVICE_PRINCIPAL_CERTIFICATE = 2
    FEDERATED = 3
    """A user-assigned identity whose tokens come from the broker, not from the machine: type 0 with an annotation."""


class AssignedState(StrEnum):
    """`status.status` of an AzureAssignedIdentity; an object without one is Assigned (made before states existed)."""

    CREATED = "Created"
    ASSIGNED = "Assigned"
    UNASSIGNED = "Unassigned"


class SecretReference(NamedTuple):
    """The Secret that holds a service principal's secret or certificate."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition of an object, for people: `status` is True, False or Unknown, `reason` one CamelCase word.

    `since` is when `status` last changed, as it is stored; `generation` that of the object it was said of, 0 when it
    does not say.
    """

    type: str
    status: str
    reason: str
    message: str
    since: str = field(default="", compare=False)
    generation: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class AzureIdentity:
    """One Azure identity that pods may use. `type` is a plain int because any number can be stored."""

    key: ObjectKey
    type: int = IdentityType.USER_ASSIGNED
    resource_id: str = ""
    client_id: str = ""
    client_password: SecretReference | None = None
    tenant_id: str = ""
    auxiliary_tenant_ids: tuple[str, ...] = ()
    ad_resource_id: str = ""
    ad_endpoint: str = ""
    replicas: int | None = None
    namespaced: bool = False
    uid: str = field(default="", compare=False)
    conditions: tuple[Condition, ...] = field(default=(), compare=False)
    generation: int = field(default=0, compare=False)
    stamp: int = field(default=0, compare=False)
    """Changes when a user changes an annotation or label; comparable within one process only."""

    @property
    def arm_id(self) -> arm.IdentityId | None:
        """The user-assigned identity behind it; None for other types and for a malformed resource ID."""
        if self.type != IdentityType.USER_ASSIGNED:
            return None
        return arm.parse_identity_id(self.resource_id)


@dataclass(frozen=True, slots=True)
class AzureIdentityBinding:
    """Pods whose label equals `selector` may use `azure_identity` (a name in the binding's own namespace)."""

    key: ObjectKey
    azure_identity: str
    selector: str
    weight: int = 0
    uid: str = field(default="", compare=False)
    node_selector: str = field(default="", compare=False)
    """On which nodes `--assign-on=binding` puts the identity; no part of what an assigned identity repeats."""
    conditions: tuple[Condition, ...] = field(default=(), compare=False)
    generation: int = field(default=0, compare=False)


class AssignmentKey(NamedTuple):
    """The pod and the identity of an assigned identity. Object names are never parsed for it."""

    pod: ObjectKey
    identity: ObjectKey


@dataclass(frozen=True, slots=True)
class AzureAssignedIdentity:
    """MIC's statement that `pod` on `node` may use `identity` because of `binding`.

    It carries no UID of the pod: whoever uses it must check node and label again (a re-created `web-0` must not
    inherit). `resource_version`, `finalizers` and `deleting` belong to the stored object, not to the statement, and
    do not count when two are compared.
    """

    key: ObjectKey
    identity: AzureIdentity
    binding: AzureIdentityBinding
    pod: ObjectKey
    node: str
    state: AssignedState = AssignedState.CREATED
    resource_version: str = field(default="", compare=False)
    finalizers: tuple[str, ...] = field(default=(), compare=False)
    deleting: bool = field(default=False, compare=False)

    @property
    def assignment_key(self) -> AssignmentKey:
        """The pod and the identity."""
        return AssignmentKey(self.pod, self.identity.key)


@dataclass(frozen=True, slots=True)
class AzurePodIdentityException:
    """Pods of `key.namespace` with any of `pod_labels` talk to IMDS as if podidentity were not there."""

    key: ObjectKey
    pod_labels: Mapping[str, str]
