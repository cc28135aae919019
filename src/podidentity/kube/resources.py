"""The kinds of objects that podidentity reads and writes, each with the few fields of it that anybody needs.

A `Kind[T]` says where its objects live in the API and how one object's bytes become a `T`. Objects are decoded one by
one and leniently: every field may be absent, unknown ones are skipped unread, and one odd object never costs its
neighbours. Used by `api` and `reflector`; which fields matter is decided by `core`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import msgspec

from podidentity.core import crd
from podidentity.core.addresses import canonical
from podidentity.core.cluster import Node, Owner, Pod
from podidentity.core.identities import ObjectKey
from podidentity.errors import InvalidError, MalformedObjectError

T = TypeVar("T")
Json = Mapping[str, Any]
_NO_NAME = frozenset("/%?#\\")  # Kubernetes forbids the first two in every name; all mean something in a URL


class Meta(msgspec.Struct, rename="camel", gc=False):
    """What every object carries."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""

    @property
    def key(self) -> ObjectKey:
        """Namespace (empty for cluster-scoped objects) and name."""
        return ObjectKey(self.namespace, self.name)


class Stored(NamedTuple, Generic[T]):
    """A decoded object and which writing of it this is. `version` is opaque: equal or not, never greater."""

    key: ObjectKey
    uid: str
    version: str
    value: T


@dataclass(frozen=True, slots=True)
class Kind(Generic[T]):
    """One kind of object. `group` is empty for the core API."""

    group: str
    version: str
    plural: str
    name: str
    read: Callable[[bytes | msgspec.Raw], Stored[T]]
    namespaced: bool = True

    def __str__(self) -> str:
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def api_version(self) -> str:
        """As objects spell it."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str = "", name: str = "") -> str:
        """Return the URL path of one object, of one namespace's objects, or of all.

        Raises `InvalidError` for a name that would lead to another object: clients resolve `..` before they send.
        """
        for part in (namespace, name):
            if part in {".", ".."} or not _NO_NAME.isdisjoint(part):
                raise InvalidError(f'{self}: "{part}" is no name of an object; correct it')
        start = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        inside = f"/namespaces/{namespace}" if self.namespaced and namespace else ""
        return f"{start}{inside}/{self.plural}" + (f"/{name}" if name else "")

    def whole(self) -> "Kind[dict[str, Any]]":
        """Return the same kind, its objects as whole JSON objects: for read, change, write back."""
        return replace(self, read=_read_whole)  # type: ignore[arg-type,return-value]


class _Object(Protocol):
    @property
    def metadata(self) -> Meta: ...


S = TypeVar("S", bound=_Object)


class _Bare(msgspec.Struct, gc=False):
    metadata: Meta = msgspec.field(default_factory=Meta)


_BARE = msgspec.json.Decoder(_Bare)


def read_meta(raw: bytes | msgspec.Raw) -> Meta:
    """Read only what every object carries; an empty Meta when not even that can be read."""
    try:
        return _BARE.decode(raw).metadata
    except msgspec.MsgspecError:
        return Meta()


def _narrow(shape: type[S], convert: Callable[[S], T]) -> Callable[[bytes | msgspec.Raw], Stored[T]]:
    """Make a reader that decodes into `shape` and keeps what `convert` makes of it."""
    decoder = msgspec.json.Decoder(shape)

    def read(raw: bytes | msgspec.Raw) -> Stored[T]:
        try:
            found = decoder.decode(raw)
        except msgspec.MsgspecError as error:
            raise _odd(raw, error) from error
        meta = found.metadata
        return Stored(meta.key, meta.uid, meta.resource_version, convert(found))

    return read


def _custom(parse: Callable[[Json], T]) -> Callable[[bytes | msgspec.Raw], Stored[T]]:
    """Make a reader for a custom resource, whose spelling only `core.crd` knows."""

    def read(raw: bytes | msgspec.Raw) -> Stored[T]:
        whole = _read_whole(raw)
        return Stored(whole.key, whole.uid, whole.version, parse(whole.value))

    return read


def _read_whole(raw: bytes | msgspec.Raw) -> Stored[dict[str, Any]]:
    try:
        whole = msgspec.json.decode(raw, type=dict[str, Any])
        meta = msgspec.convert(whole.get("metadata") or {}, Meta)
    except msgspec.MsgspecError as error:
        raise _odd(raw, error) from error
    return Stored(meta.key, meta.uid, meta.resource_version, whole)


def _odd(raw: bytes | msgspec.Raw, error: Exception) -> MalformedObjectError:
    return MalformedObjectError(f"object {read_meta(raw).key}: {error}; correct it")


# Pods. The API sends `null` for no field of ours, but absent and null mean the same everywhere in Kubernetes.


class _OwnerReference(msgspec.Struct, gc=False):
    kind: str = ""
    name: str = ""
    controller: bool | None = None


class _PodMeta(Meta, rename="camel", gc=False):
    deletion_timestamp: str | None = None
    labels: dict[str, str] | None = None
    owner_references: list[_OwnerReference] | None = None


class _PodSpec(msgspec.Struct, rename="camel", gc=False):
    node_name: str | None = None
    host_network: bool | None = None
    service_account_name: str | None = None


class _PodAddress(msgspec.Struct, gc=False):
    ip: str = ""


class _PodStatus(msgspec.Struct, gc=False):
    phase: str | None = None
    pod_ip: str | None = msgspec.field(default=None, name="podIP")
    pod_ips: list[_PodAddress] | None = msgspec.field(default=None, name="podIPs")


class _Pod(msgspec.Struct, gc=False):
    metadata: _PodMeta = msgspec.field(default_factory=_PodMeta)
    spec: _PodSpec | None = None
    status: _PodStatus | None = None


def _pod(found: _Pod) -> Pod:
    spec, status, meta = found.spec or _PodSpec(), found.status or _PodStatus(), found.metadata
    return Pod(
        key=meta.key,
        uid=meta.uid,
        node=spec.node_name or "",
        phase=status.phase or "Pending",
        ips=_addresses(status),
        labels=meta.labels or {},
        host_network=bool(spec.host_network),
        owner=_owner(meta.owner_references or ()),
        service_account=spec.service_account_name or "",
        ending=meta.deletion_timestamp is not None,
    )


def _addresses(status: _PodStatus) -> tuple[str, ...]:
    """All addresses, the primary one first. `podIPs` repeats `podIP`; very old kubelets write only the latter."""
    found = tuple(canonical(address.ip) for address in status.pod_ips or () if address.ip)
    return found or ((canonical(status.pod_ip),) if status.pod_ip else ())


def _owner(references: "list[_OwnerReference] | tuple[()]") -> Owner | None:
    return next((Owner(reference.kind, reference.name) for reference in references if reference.controller), None)


# Nodes, namespaces, secrets, CRDs.


class _LabelledMeta(Meta, rename="camel", gc=False):
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None


class _NodeSpec(msgspec.Struct, gc=False):
    provider_id: str | None = msgspec.field(default=None, name="providerID")


class _Node(msgspec.Struct, gc=False):
    metadata: _LabelledMeta = msgspec.field(default_factory=_LabelledMeta)
    spec: _NodeSpec | None = None


def _node(found: _Node) -> Node:
    provider_id = found.spec.provider_id if found.spec else None
    return Node(found.metadata.name, provider_id or "", found.metadata.labels or {})


class _Labelled(msgspec.Struct, gc=False):
    metadata: _LabelledMeta = msgspec.field(default_factory=_LabelledMeta)


@dataclass(frozen=True, slots=True)
class Namespace:
    """A namespace and its annotations, which may say what identities it is allowed."""

    name: str
    annotations: Mapping[str, str]


class _Secret(msgspec.Struct, gc=False):
    metadata: Meta = msgspec.field(default_factory=Meta)
    data: dict[str, bytes] | None = None  # msgspec reads base64 into bytes


@dataclass(frozen=True, slots=True)
class Secret:
    """A Secret; its values never show in a repr."""

    key: ObjectKey
    values: Mapping[str, bytes] = field(repr=False)


@dataclass(frozen=True, slots=True)
class CustomResourceDefinition:
    """That a kind exists; its schema is nobody's business here."""

    name: str


PODS = Kind("", "v1", "pods", "Pod", _narrow(_Pod, _pod))
NODES = Kind("", "v1", "nodes", "Node", _narrow(_Node, _node), namespaced=False)
NAMESPACES = Kind(
    "",
    "v1",
    "namespaces",
    "Namespace",
    _narrow(_Labelled, lambda found: Namespace(found.metadata.name, found.metadata.annotations or {})),
    namespaced=False,
)
SECRETS = Kind(
    "", "v1", "secrets", "Secret", _narrow(_Secret, lambda found: Secret(found.metadata.key, found.data or {}))
)
CRDS = Kind(
    "apiextensions.k8s.io",
    "v1",
    "customresourcedefinitions",
    "CustomResourceDefinition",
    _narrow(_Bare, lambda found: CustomResourceDefinition(found.metadata.name)),
    namespaced=False,
)

IDENTITIES = Kind(crd.GROUP, crd.VERSION, "azureidentities", "AzureIdentity", _custom(crd.parse_identity))
BINDINGS = Kind(crd.GROUP, crd.VERSION, "azureidentitybindings", "AzureIdentityBinding", _custom(crd.parse_binding))
ASSIGNED_IDENTITIES = Kind(
    crd.GROUP, crd.VERSION, "azureassignedidentities", "AzureAssignedIdentity", _custom(crd.parse_assigned)
)
EXCEPTIONS = Kind(
    crd.GROUP, crd.VERSION, "azurepodidentityexceptions", "AzurePodIdentityException", _custom(crd.parse_exception)
)

# Read, changed and written back whole.
DAEMON_SETS = Kind("apps", "v1", "daemonsets", "DaemonSet", _read_whole)
CONFIG_MAPS = Kind("", "v1", "configmaps", "ConfigMap", _read_whole)
ENDPOINTS = Kind("", "v1", "endpoints", "Endpoints", _read_whole)
EVENTS = Kind("", "v1", "events", "Event", _read_whole)
LEASES = Kind("coordination.k8s.io", "v1", "leases", "Lease", _read_whole)
SUBJECT_REVIEWS = Kind(
    "authorization.k8s.io", "v1", "subjectaccessreviews", "SubjectAccessReview", _read_whole, namespaced=False
)
"""Only ever created: the answer says whether somebody may do something."""
