"""Custom resources between their wire form (JSON objects) and `identities`.

Reads every spelling that clusters hold: upstream decodes field names without regard to case, and manifests in the wild
use that (`ClientID`, `clientPassword: {Name: ...}`). The spelling of the schema wins when several are present. Writes
the schema's spelling only. Malformed objects raise `MalformedObjectError`, which names the object and the field.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from podidentity.core.model import redact
from podidentity.core.model.identities import (
    AssignedState,
    AzureAssignedIdentity,
    AzureIdentity,
    AzureIdentityBinding,
    AzurePodIdentityException,
    Condition,
    IdentityType,
    ObjectKey,
    SecretReference,
)
from podidentity.core.model.label_selector import LONGEST as LONGEST_SELECTOR
from podidentity.errors import MalformedObjectError

GROUP = "aadpodidentity.k8s.io"
VERSION = "v1"
API_VERSION = f"{GROUP}/{VERSION}"
FINALIZER = f"azureassignedidentity.finalizers.{GROUP}"
BEHAVIOR_ANNOTATION = f"{GROUP}/Behavior"
NAMESPACED_BEHAVIOR = "namespaced"
SOURCE_ANNOTATION = "podidentity.io/token-source"
BROKER_SOURCE = "broker"
"""The annotation's value on an AzureIdentity of type 0 whose tokens come from the broker; else from the machine."""
NODE_SELECTOR_ANNOTATION = "podidentity.io/node-selector"
NODE_LABEL = "nodename"
LONGEST_LABEL = 63
"""Of a value. NMI looks at all nodes' objects where its node's name is longer."""
LONGEST_TEXT = 1024
"""Of a field: no name, ID or address is as long. Whoever may create objects must not fill MIC's or NMI's memory."""
LONGEST = {"clientID": 64, "tenantID": 64, "auxiliaryTenantIDs": 64, "resourceID": 512}
"""Of these fields, which every assigned identity repeats: GUIDs, and IDs of at most four names of 90 characters."""
MOST_TEXTS = 8
"""Items of `auxiliaryTenantIDs`: each costs a call to Entra ID for a token."""
MOST_CONDITIONS = 16
"""Of an object. A tenant may write its status, too."""

Json = Mapping[str, Any]


def parse_identity(obj: Json) -> AzureIdentity:
    """Read an AzureIdentity."""
    source = _Source("AzureIdentity", obj)
    return _identity(source, source.key)


def parse_binding(obj: Json) -> AzureIdentityBinding:
    """Read an AzureIdentityBinding."""
    source = _Source("AzureIdentityBinding", obj)
    return _binding(source, source.key)


def parse_assigned(obj: Json) -> AzureAssignedIdentity:
    """Read an AzureAssignedIdentity with the identity and the binding inside it."""
    source = _Source("AzureAssignedIdentity", obj)
    identity = source.inner("azureIdentityRef")
    binding = source.inner("azureBindingRef")
    metadata = source.metadata
    return AzureAssignedIdentity(
        key=source.key,
        identity=_identity(identity, identity.key),
        binding=_binding(binding, binding.key),
        pod=ObjectKey(source.text("podNamespace"), source.text("pod")),
        node=source.text("nodename"),
        state=_state(source),
        resource_version=str(metadata.get("resourceVersion", "")),
        finalizers=tuple(str(name) for name in metadata.get("finalizers") or ()),
        deleting=bool(metadata.get("deletionTimestamp")),
    )


def parse_exception(obj: Json) -> AzurePodIdentityException:
    """Read an AzurePodIdentityException."""
    source = _Source("AzurePodIdentityException", obj)
    labels = source.mapping("podLabels")
    return AzurePodIdentityException(source.key, {str(name): str(value) for name, value in labels.items()})


def render_identity(identity: AzureIdentity) -> dict[str, Any]:
    """Write an AzureIdentity; empty fields are left out."""
    is_federated = identity.type == IdentityType.FEDERATED
    spec: dict[str, Any] = {"type": int(IdentityType.USER_ASSIGNED if is_federated else identity.type)}
    texts = {
        "resourceID": identity.resource_id,
        "clientID": identity.client_id,
        "tenantID": identity.tenant_id,
        "adResourceID": identity.ad_resource_id,
        "adEndpoint": identity.ad_endpoint,
    }
    spec |= {name: value for name, value in texts.items() if value}
    if identity.client_password:
        spec["clientPassword"] = {
            "namespace": identity.client_password.namespace,
            "name": identity.client_password.name,
        }
    if identity.auxiliary_tenant_ids:
        spec["auxiliaryTenantIDs"] = list(identity.auxiliary_tenant_ids)
    if identity.replicas is not None:
        spec["replicas"] = identity.replicas
    obj = _object("AzureIdentity", identity.key, spec)
    annotations = {BEHAVIOR_ANNOTATION: NAMESPACED_BEHAVIOR} if identity.namespaced else {}
    if is_federated:
        annotations[SOURCE_ANNOTATION] = BROKER_SOURCE
    if annotations:
        obj["metadata"]["annotations"] = annotations
    return obj


def render_binding(binding: AzureIdentityBinding) -> dict[str, Any]:
    """Write an AzureIdentityBinding."""
    spec: dict[str, Any] = {"azureIdentity": binding.azure_identity, "selector": binding.selector}
    if binding.weight:
        spec["weight"] = binding.weight
    return _object("AzureIdentityBinding", binding.key, spec)


def render_assigned(item: AzureAssignedIdentity) -> dict[str, Any]:
    """Write an AzureAssignedIdentity as upstream does: label `nodename` and no other, its finalizer, one replica.

    A node's name that is no label value is left out: the API server would refuse the object.
    """
    spec: dict[str, Any] = {
        "azureIdentityRef": render_identity(item.identity),
        "azureBindingRef": render_binding(item.binding),
        "pod": item.pod.name,
        "podNamespace": item.pod.namespace,
        "nodename": item.node,
    }
    obj = _object("AzureAssignedIdentity", item.key, spec)
    labels = {NODE_LABEL: item.node} if len(item.node) <= LONGEST_LABEL else {}
    obj["metadata"] |= {"labels": labels, "finalizers": list(item.finalizers or (FINALIZER,))}
    if item.resource_version:
        obj["metadata"]["resourceVersion"] = item.resource_version
    obj["status"] = {"status": str(item.state), "availableReplicas": 1}
    if item.binding.uid:  # upstream has it too; an event about the binding needs it to be found
        spec["azureBindingRef"]["metadata"]["uid"] = item.binding.uid
    return obj


def render_conditions(conditions: Iterable[Condition]) -> list[dict[str, Any]]:
    """Write `status.conditions`."""
    return [
        {
            "type": condition.type,
            "status": condition.status,
            "reason": condition.reason,
            "message": condition.message,
            "lastTransitionTime": condition.since,
            **({"observedGeneration": condition.generation} if condition.generation else {}),
        }
        for condition in conditions
    ]


def respelled(obj: Json) -> dict[str, Any] | None:
    """Return an object with its fields spelled as the schema has them, nothing else changed; None when they are.

    What upstream calls the type upgrade (`pkg/crd`, UpgradeAll). Only when asked for: a rewrite fights with GitOps.
    """
    fresh = {**obj, "spec": _respelled_spec(str(obj.get("kind", "")), _mapping(obj.get("spec")))}
    status = _mapping(obj.get("status"))
    if status:
        fresh["status"] = _respelled(status, ("status", "availableReplicas", "conditions", "metadata"))
    return fresh if fresh != obj else None


_FIELDS = {
    "AzureIdentity": (
        "type",
        "resourceID",
        "clientID",
        "clientPassword",
        "tenantID",
        "auxiliaryTenantIDs",
        "adResourceID",
        "adEndpoint",
        "replicas",
        "metadata",
    ),
    "AzureIdentityBinding": ("azureIdentity", "selector", "weight", "metadata"),
    "AzureAssignedIdentity": (
        "azureIdentityRef",
        "azureBindingRef",
        "pod",
        "podNamespace",
        "nodename",
        "replicas",
        "metadata",
    ),
    "AzurePodIdentityException": ("podLabels", "metadata"),
}


def _respelled_spec(kind: str, spec: Json) -> dict[str, Any]:
    fresh = _respelled(spec, _FIELDS.get(kind, ()))
    secret = fresh.get("clientPassword")
    if isinstance(secret, Mapping):
        fresh["clientPassword"] = _respelled(secret, ("name", "namespace"))
    for name, inner_kind in (("azureIdentityRef", "AzureIdentity"), ("azureBindingRef", "AzureIdentityBinding")):
        inner = fresh.get(name)
        if isinstance(inner, Mapping) and isinstance(inner.get("spec"), Mapping):
            fresh[name] = {**inner, "spec": _respelled_spec(inner_kind, inner["spec"])}
    return fresh


def _respelled(holder: Json, names: Iterable[str]) -> dict[str, Any]:
    """Rename keys that differ only in case; the value that `_get` would read is the one that stays."""
    spelling = {name.lower(): name for name in names}
    fresh = {key: value for key, value in holder.items() if key.lower() not in spelling}
    return {
        spelling[key.lower()]: _get(holder, spelling[key.lower()]) for key in holder if key.lower() in spelling
    } | fresh


class _Source:
    """One object and where it stands, so that every complaint names it."""

    def __init__(self, kind: str, obj: Json, inside: str = "") -> None:
        self.kind = kind
        self.metadata = _mapping(obj.get("metadata"))
        self.key = ObjectKey(str(self.metadata.get("namespace", "")), str(self.metadata.get("name", "")))
        self.location = inside or f"{kind} {self.key}"
        self.obj = obj
        self.spec = self._mapping_field(obj, "spec")

    def inner(self, name: str) -> "_Source":
        kind = "AzureIdentity" if name == "azureIdentityRef" else "AzureIdentityBinding"
        return _Source(kind, self.mapping(name), f"{self.location}: {name}")

    def text(self, name: str) -> str:
        value = _get(self.spec, name)
        if value is None:
            return ""
        if not isinstance(value, str):
            raise self.wrong(name, "a text", value)
        return self._short(name, value)

    def number(self, name: str) -> int | None:
        value = _get(self.spec, name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.wrong(name, "a whole number", value)
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        value = _get(self.spec, name)
        if value is None:
            return ()
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
            raise self.wrong(name, "a list of texts", value)
        if len(value) > MOST_TEXTS:
            raise MalformedObjectError(f"{self.location}: {name} has more than {MOST_TEXTS} items; correct it")
        return tuple(self._short(name, item) for item in value)

    def _short(self, name: str, value: str) -> str:
        limit = LONGEST.get(name, LONGEST_TEXT)
        if len(value) > limit:
            raise MalformedObjectError(f"{self.location}: {name} is longer than {limit} characters; correct it")
        return value

    def mapping(self, name: str) -> Json:
        return self._mapping_field(self.spec, name)

    def _mapping_field(self, holder: Json, name: str) -> Json:
        value = _get(holder, name)
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            raise self.wrong(name, "an object", value)
        return value

    def wrong(self, name: str, requirement: str, value: object) -> MalformedObjectError:
        return MalformedObjectError(
            f"{self.location}: {name} must be {requirement}, not {type(value).__name__}; correct it"
        )


def _identity(source: _Source, key: ObjectKey) -> AzureIdentity:
    secret = source.mapping("clientPassword")
    annotations = _mapping(source.metadata.get("annotations"))
    kind = source.number("type") or IdentityType.USER_ASSIGNED
    texts = {name: source.text(name) for name in ("tenantID", "adResourceID", "adEndpoint")}
    tenants = source.texts("auxiliaryTenantIDs")
    if kind == IdentityType.USER_ASSIGNED:
        # It has no use for them, and each assigned identity of its namespace's pods would repeat them.
        secret, texts, tenants = {}, dict.fromkeys(texts, ""), ()
        if str(annotations.get(SOURCE_ANNOTATION, "")).lower() == BROKER_SOURCE:
            kind = IdentityType.FEDERATED
    return AzureIdentity(
        key=key,
        type=kind,
        resource_id=source.text("resourceID"),
        client_id=source.text("clientID"),
        client_password=_secret_reference(secret, key.namespace),
        tenant_id=texts["tenantID"],
        auxiliary_tenant_ids=tenants,
        ad_resource_id=texts["adResourceID"],
        ad_endpoint=texts["adEndpoint"],
        replicas=source.number("replicas"),
        namespaced=str(annotations.get(BEHAVIOR_ANNOTATION, "")).lower() == NAMESPACED_BEHAVIOR,
        stamp=hash(repr((annotations, source.metadata.get("labels")))),
        uid=str(source.metadata.get("uid", "")),
        conditions=_conditions(source.obj),
        generation=_integer(source.metadata.get("generation")),
    )


def _binding(source: _Source, key: ObjectKey) -> AzureIdentityBinding:
    return AzureIdentityBinding(
        key=key,
        azure_identity=source.text("azureIdentity"),
        selector=source.text("selector"),
        weight=source.number("weight") or 0,
        uid=str(source.metadata.get("uid", "")),
        node_selector=str(_mapping(source.metadata.get("annotations")).get(NODE_SELECTOR_ANNOTATION, ""))[
            : LONGEST_SELECTOR + 1
        ],
        conditions=_conditions(source.obj),
        generation=_integer(source.metadata.get("generation")),
    )


def _conditions(obj: Json) -> tuple[Condition, ...]:
    """Read conditions leniently: they inform, nothing depends on them."""
    conditions = _mapping(obj.get("status")).get("conditions")
    first = conditions[:MOST_CONDITIONS] if isinstance(conditions, list) else ()
    return tuple(map(_condition, map(_mapping, first)))


def _condition(entry: Json) -> Condition:
    kind, status, reason, message, since = (str(entry.get(name, ""))[:LONGEST_TEXT] for name in _CONDITION_TEXTS)
    return Condition(kind, status, reason, message, since, _integer(entry.get("observedGeneration")))


_CONDITION_TEXTS = ("type", "status", "reason", "message", "lastTransitionTime")


def _secret_reference(secret: Json, namespace: str) -> SecretReference | None:
    name = str(_get(secret, "name") or "")
    return SecretReference(str(_get(secret, "namespace") or namespace), name) if name else None


def _state(source: _Source) -> AssignedState:
    text = str(_get(_mapping(_get(source.obj, "status")), "status") or AssignedState.ASSIGNED)
    try:
        return AssignedState(text.capitalize())
    except ValueError:
        states = ", ".join(AssignedState)
        raise MalformedObjectError(
            f'{source.location}: status "{redact.printable(text)}" is unknown; it must be one of: {states}'
        ) from None


def _get(holder: Json, name: str) -> Any:
    """The schema's spelling when it is set, else the first that differs only in case."""
    value = holder.get(name)
    if value is not None:
        return value
    lower_name = name.lower()
    return next((item for key, item in holder.items() if key.lower() == lower_name and item is not None), None)


def _integer(value: object) -> int:
    return value if isinstance(value, int) else 0


def _mapping(value: object) -> Json:
    return value if isinstance(value, Mapping) else {}


def _object(kind: str, key: ObjectKey, spec: dict[str, Any]) -> dict[str, Any]:
    metadata = {"name": key.name, "namespace": key.namespace}
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": metadata, "spec": spec}
