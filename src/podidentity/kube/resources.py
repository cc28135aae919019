"""Defines the kinds of objects that podidentity reads and writes, each with the few fields that it needs.

A `Kind[T]` has the API path of its objects and the function that decodes one object's bytes into a `T`. Objects are
decoded one by one and leniently: every field may be absent, unknown ones are skipped, and an object that cannot be read
does not affect others.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from sys import intern
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import msgspec

from podidentity.core.model import crd, machine_state
from podidentity.core.model.addresses import canonical
from podidentity.core.model.allow_list import ANNOTATION
from podidentity.core.model.identities import POD_LABEL, ObjectKey
from podidentity.core.model.machine_state import MachineState
from podidentity.core.model.snapshot import Node, Owner, Pod
from podidentity.errors import InvalidError, MalformedObjectError
from podidentity.kube.depth import decode, was_cut
from podidentity.kube.quota import NAMESPACE_OBJECTS
from podidentity.kube.sharing import parse_shared, shared_key, shared_labels

T = TypeVar("T")
Json = Mapping[str, Any]
Raw = bytes | msgspec.Raw
UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""The errors of msgspec for bytes that it cannot decode. Skipping a field recurses, too (one call a level): `depth`."""
LABEL_LIMIT = 64
"""How many labels of a pod exceptions can match, besides those that we read ourselves: a pod may have 9,000."""
_WORDS_CHARACTERS = 600
_OWN_LABELS = (POD_LABEL, "pod-template-hash")
_NO_NAME = frozenset("/%?#\\")  # Kubernetes forbids the first two in every name; all mean something in a URL


class Meta(msgspec.Struct, rename="camel", gc=False):
    """The metadata that every object has."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""

    @property
    def key(self) -> ObjectKey:
        """Namespace (empty for cluster-scoped objects) and name."""
        return ObjectKey(self.namespace, self.name)


class StoredObject(NamedTuple, Generic[T]):
    """A decoded object with its resource version, which is opaque: it can be compared only for equality."""

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
    read: Callable[[Raw], StoredObject[T]]
    namespaced: bool = True
    namespace_limit: int = 0
    """How many objects of one namespace a watch keeps; 0: all."""
    is_paced: bool = False
    """Whether a watch bounds the changes of a namespace: tenants write these objects, podidentity does not."""

    def __str__(self) -> str:
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def api_version(self) -> str:
        """The `apiVersion` of its objects."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str = "", name: str = "") -> str:
        """Return the URL path of one object, of one namespace's objects, or of all.

        Raises InvalidError for a name that would lead to another object: clients resolve `..` before they send.
        """
        for part in (namespace, name):
            if part in {".", ".."} or not _NO_NAME.isdisjoint(part):
                raise InvalidError(f'{self}: "{part}" is no name of an object; correct it')
        start = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        inside = f"/namespaces/{namespace}" if self.namespaced and namespace else ""
        return f"{start}{inside}/{self.plural}" + (f"/{name}" if name else "")

    def as_json(self) -> "Kind[dict[str, Any]]":
        """Return the same kind with whole JSON objects as its values, which can be changed and written back."""
        return replace(self, read=_read_whole)  # type: ignore[arg-type,return-value]


class _Object(Protocol):
    @property
    def metadata(self) -> Meta: ...


S = TypeVar("S", bound=_Object)


class _Bare(msgspec.Struct, gc=False):
    metadata: Meta = msgspec.field(default_factory=Meta)


_BARE = msgspec.json.Decoder(_Bare)


def read_meta(raw: Raw) -> Meta:
    """Return an object's metadata; empty when not even that can be read."""
    try:
        return decode(_BARE, raw).metadata
    except UNREADABLE:
        return Meta()


def _narrow(shape: type[S], convert: Callable[[S], T]) -> Callable[[Raw], StoredObject[T]]:
    """Return a reader that decodes into `shape` and then calls `convert`."""
    decoder = msgspec.json.Decoder(shape)

    def read(raw: Raw) -> StoredObject[T]:
        item = decode(decoder, raw)
        meta = item.metadata
        return StoredObject(meta.key, meta.uid, meta.resource_version, convert(item))

    return _guarded(read)


def _custom(parse: Callable[[Json], T]) -> Callable[[Raw], StoredObject[T]]:
    """Return a reader for a custom resource; its fields are known only to `crd`."""

    def read(raw: Raw) -> StoredObject[T]:
        document = _decode_whole(raw)
        return StoredObject(document.key, document.uid, document.version, parse(document.value))

    return _guarded(read)


def _guarded(read: Callable[[Raw], StoredObject[T]]) -> Callable[[Raw], StoredObject[T]]:
    """Return a reader whose every failure is a MalformedObjectError.

    Unforeseen ones too: they concern one object, which a tenant wrote, and must not end a daemon.
    """

    def guarded(raw: Raw) -> StoredObject[T]:
        try:
            return read(raw)
        except MalformedObjectError:
            raise
        except Exception as error:
            raise _odd(raw, error) from error

    return guarded


_ANY_OBJECT = msgspec.json.Decoder(dict[str, Any])


def _decode_whole(raw: Raw) -> StoredObject[dict[str, Any]]:
    return _with_meta(decode(_ANY_OBJECT, raw))


def _decode_uncut(raw: Raw) -> StoredObject[dict[str, Any]]:
    """Decode what may be changed and written back: all of it."""
    if was_cut(raw):
        raise RecursionError("it is nested too deeply")
    return _with_meta(_ANY_OBJECT.decode(raw))


def _with_meta(document: dict[str, Any]) -> StoredObject[dict[str, Any]]:
    meta = msgspec.convert(document.get("metadata") or {}, Meta)
    return StoredObject(meta.key, meta.uid, meta.resource_version, document)


_read_whole = _guarded(_decode_uncut)


def _odd(raw: Raw, error: Exception) -> MalformedObjectError:
    # Bounded: an error may quote the object.
    words = " ".join(f"{error}"[:_WORDS_CHARACTERS].split()) or type(error).__name__
    return MalformedObjectError(f"object {read_meta(raw).key}: {words}; correct it")


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


def _pod(pod: _Pod) -> Pod:
    """Return the pod as NMI needs it: with a limited number of labels, because exceptions may match any."""
    labels = pod.metadata.labels or {}
    names = labels if len(labels) <= LABEL_LIMIT else (*islice(labels, LABEL_LIMIT), *_OWN_LABELS)
    return _pod_with(pod, names)


def _selected_pod(pod: _Pod) -> Pod:
    """Return the pod as MIC needs it: bindings select by one label."""
    return _pod_with(pod, _OWN_LABELS)


def _pod_with(pod: _Pod, names: Iterable[str]) -> Pod:
    spec, status, meta = pod.spec or _PodSpec(), pod.status or _PodStatus(), pod.metadata
    labels = meta.labels or {}
    return Pod(
        key=shared_key(meta.key),
        uid=meta.uid,
        node=intern(spec.node_name or ""),
        phase=intern(status.phase or "Pending"),
        ips=_addresses(status),
        labels=shared_labels({name: labels[name] for name in names if name in labels}),
        host_network=bool(spec.host_network),
        owner=_owner(meta.owner_references or ()),
        service_account=intern(spec.service_account_name or ""),
        ending=meta.deletion_timestamp is not None,
    )


def _addresses(status: _PodStatus) -> tuple[str, ...]:
    """Return all addresses, the primary first. `podIPs` repeats `podIP`; very old kubelets write only the latter."""
    addresses = tuple(canonical(address.ip) for address in status.pod_ips or () if address.ip)
    return addresses or ((canonical(status.pod_ip),) if status.pod_ip else ())


def _owner(references: "list[_OwnerReference] | tuple[()]") -> Owner | None:
    return next((Owner(intern(item.kind), intern(item.name)) for item in references if item.controller), None)


# Nodes, namespaces, secrets, CRDs.


class _LabelledMeta(Meta, rename="camel", gc=False):
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None


class _NodeSpec(msgspec.Struct, gc=False):
    provider_id: str | None = msgspec.field(default=None, name="providerID")


class _Node(msgspec.Struct, gc=False):
    metadata: _LabelledMeta = msgspec.field(default_factory=_LabelledMeta)
    spec: _NodeSpec | None = None


def _node(node: _Node) -> Node:
    provider_id = node.spec.provider_id if node.spec else None
    return Node(node.metadata.name, provider_id or "", node.metadata.labels or {})


class _Labelled(msgspec.Struct, gc=False):
    metadata: _LabelledMeta = msgspec.field(default_factory=_LabelledMeta)


def _machine_state(obj: _Labelled) -> MachineState:
    return machine_state.parse_annotations(obj.metadata.annotations or {})


@dataclass(frozen=True, slots=True)
class Namespace:
    """A namespace; of its annotations only the one with the identities that it may use, if it has it."""

    name: str
    annotations: Mapping[str, str]


def _namespace(namespace: _Labelled) -> Namespace:
    annotations = namespace.metadata.annotations or {}
    relevant = {ANNOTATION: annotations[ANNOTATION]} if ANNOTATION in annotations else {}
    return Namespace(namespace.metadata.name, relevant)


@dataclass(frozen=True, slots=True)
class ServiceAccount:
    """A service account with its annotations."""

    key: ObjectKey
    annotations: Mapping[str, str]


def _service_account(account: _Labelled) -> ServiceAccount:
    return ServiceAccount(account.metadata.key, account.metadata.annotations or {})


class _Secret(msgspec.Struct, gc=False):
    metadata: Meta = msgspec.field(default_factory=Meta)
    data: dict[str, bytes] | None = None  # msgspec reads base64 into bytes


@dataclass(frozen=True, slots=True)
class Secret:
    """A Secret; a repr does not show its values."""

    key: ObjectKey
    values: Mapping[str, bytes] = field(repr=False)


@dataclass(frozen=True, slots=True)
class CustomResourceDefinition:
    """The definition of a kind, without its schema."""

    name: str


PODS = Kind("", "v1", "pods", "Pod", _narrow(_Pod, _pod), is_paced=True)
SELECTED_PODS = Kind("", "v1", "pods", "Pod", _narrow(_Pod, _selected_pod), is_paced=True)
"""The same pods with no labels but the one that bindings select by."""
NODES = Kind("", "v1", "nodes", "Node", _narrow(_Node, _node), namespaced=False)
NAMESPACES = Kind(*("", "v1", "namespaces", "Namespace"), _narrow(_Labelled, _namespace), namespaced=False)
SERVICE_ACCOUNTS = Kind("", "v1", "serviceaccounts", "ServiceAccount", _narrow(_Labelled, _service_account))
MACHINE_STATES = Kind("coordination.k8s.io", "v1", "leases", "Lease", _narrow(_Labelled, _machine_state))
"""The Leases with which MIC tells NMI what is on a machine (`core.model.machine_state`)."""
SECRETS = Kind(
    "", "v1", "secrets", "Secret", _narrow(_Secret, lambda secret: Secret(secret.metadata.key, secret.data or {}))
)
CRDS = Kind(
    *("apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition"),
    _narrow(_Bare, lambda definition: CustomResourceDefinition(definition.metadata.name)),
    namespaced=False,
)

IDENTITIES = Kind(
    *(crd.GROUP, crd.VERSION, "azureidentities", "AzureIdentity", _custom(crd.parse_identity)),
    namespace_limit=NAMESPACE_OBJECTS,
    is_paced=True,
)
BINDINGS = Kind(
    *(crd.GROUP, crd.VERSION, "azureidentitybindings", "AzureIdentityBinding", _custom(crd.parse_binding)),
    namespace_limit=NAMESPACE_OBJECTS,
    is_paced=True,
)
ASSIGNED_IDENTITIES = Kind(
    *(crd.GROUP, crd.VERSION, "azureassignedidentities", "AzureAssignedIdentity", _custom(parse_shared)),
)
EXCEPTIONS = Kind(
    *(crd.GROUP, crd.VERSION, "azurepodidentityexceptions", "AzurePodIdentityException", _custom(crd.parse_exception)),
    namespace_limit=NAMESPACE_OBJECTS,
    is_paced=True,
)

# Read, changed and written back as whole objects.
DAEMON_SETS = Kind("apps", "v1", "daemonsets", "DaemonSet", _read_whole)
DEPLOYMENTS = Kind("apps", "v1", "deployments", "Deployment", _read_whole)
CONFIG_MAPS = Kind("", "v1", "configmaps", "ConfigMap", _read_whole)
ENDPOINTS = Kind("", "v1", "endpoints", "Endpoints", _read_whole)
EVENTS = Kind("", "v1", "events", "Event", _read_whole)
LEASES = Kind("coordination.k8s.io", "v1", "leases", "Lease", _read_whole)
MUTATING_WEBHOOKS = Kind(
    "admissionregistration.k8s.io",
    "v1",
    "mutatingwebhookconfigurations",
    "MutatingWebhookConfiguration",
    _read_whole,
    namespaced=False,
)
SUBJECT_REVIEWS = Kind(
    "authorization.k8s.io", "v1", "subjectaccessreviews", "SubjectAccessReview", _read_whole, namespaced=False
)
"""Only created: the status in the answer says whether a user may do something."""
TOKEN_REVIEWS = Kind("authentication.k8s.io", "v1", "tokenreviews", "TokenReview", _read_whole, namespaced=False)
"""Only created: the status in the answer says whose a token is."""
