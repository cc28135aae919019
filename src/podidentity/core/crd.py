"""Custom resources between their wire form (JSON objects) and `identities`.

Reads every spelling that clusters hold: upstream decodes field names without regard to case, and manifests in the wild
use that (`ClientID`, `clientPassword: {Name: ...}`). The spelling of the schema wins when several are present. Writes
the schema's spelling only. Malformed objects raise `MalformedObjectError`, which names the object and the field.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from podidentity.core import redact
from podidentity.core.identities import (
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
from podidentity.core.selecting import LONGEST
from podidentity.errors import MalformedObjectError

GROUP = "aadpodidentity.k8s.io"
VERSION = "v1"
API_VERSION = f"{GROUP}/{VERSION}"
FINALIZER = f"azureassignedidentity.finalizers.{GROUP}"
BEHAVIOR_ANNOTATION = f"{GROUP}/Behavior"
NAMESPACED_BEHAVIOR = "namespaced"
NODE_SELECTOR_ANNOTATION = "podidentity.io/node-selector"
NODE_LABEL = "nodename"
LONGEST_LABEL = 63
"""Of a value. NMI looks at all nodes' objects where its node's name is longer."""
LONGEST_TEXT = 1024
"""Of a field: no name, ID or address is as long. Whoever may create objects must not fill MIC's or NMI's memory."""
MOST_TEXTS = 64

Json = Mapping[str, Any]


def parse_identity(obj: Json) -> AzureIdentity:
    """Read an AzureIdentity."""
    at = _Place("AzureIdentity", obj)
    return _identity(at, at.key)


def parse_binding(obj: Json) -> AzureIdentityBinding:
    """Read an AzureIdentityBinding."""
    at = _Place("AzureIdentityBinding", obj)
    return _binding(at, at.key)


def parse_assigned(obj: Json) -> AzureAssignedIdentity:
    """Read an AzureAssignedIdentity with the identity and the binding inside it."""
    at = _Place("AzureAssignedIdentity", obj)
    identity = at.inner("azureIdentityRef")
    binding = at.inner("azureBindingRef")
    metadata = at.metadata
    return AzureAssignedIdentity(
        key=at.key,
        identity=_identity(identity, identity.key),
        binding=_binding(binding, binding.key),
        pod=ObjectKey(at.text("podNamespace"), at.text("pod")),
        node=at.text("nodename"),
        state=_state(at),
        resource_version=str(metadata.get("resourceVersion", "")),
        finalizers=tuple(str(name) for name in metadata.get("finalizers") or ()),
        deleting=bool(metadata.get("deletionTimestamp")),
    )


def parse_exception(obj: Json) -> AzurePodIdentityException:
    """Read an AzurePodIdentityException."""
    at = _Place("AzurePodIdentityException", obj)
    labels = at.mapping("podLabels")
    return AzurePodIdentityException(at.key, {str(name): str(value) for name, value in labels.items()})


def render_identity(identity: AzureIdentity) -> dict[str, Any]:
    """Write an AzureIdentity; empty fields are left out."""
    spec: dict[str, Any] = {"type": int(identity.type)}
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
    if identity.namespaced:
        obj["metadata"]["annotations"] = {BEHAVIOR_ANNOTATION: NAMESPACED_BEHAVIOR}
    return obj


def render_binding(binding: AzureIdentityBinding) -> dict[str, Any]:
    """Write an AzureIdentityBinding."""
    spec: dict[str, Any] = {"azureIdentity": binding.azure_identity, "selector": binding.selector}
    if binding.weight:
        spec["weight"] = binding.weight
    return _object("AzureIdentityBinding", binding.key, spec)


def render_assigned(assigned: AzureAssignedIdentity) -> dict[str, Any]:
    """Write an AzureAssignedIdentity as upstream does: label `nodename` and no other, its finalizer, one replica.

    A node's name that is no label value is left out: the API server would refuse the object.
    """
    spec: dict[str, Any] = {
        "azureIdentityRef": render_identity(assigned.identity),
        "azureBindingRef": render_binding(assigned.binding),
        "pod": assigned.pod.name,
        "podNamespace": assigned.pod.namespace,
        "nodename": assigned.node,
    }
    obj = _object("AzureAssignedIdentity", assigned.key, spec)
    labels = {NODE_LABEL: assigned.node} if len(assigned.node) <= LONGEST_LABEL else {}
    obj["metadata"] |= {"labels": labels, "finalizers": list(assigned.finalizers or (FINALIZER,))}
    if assigned.resource_version:
        obj["metadata"]["resourceVersion"] = assigned.resource_version
    obj["status"] = {"status": str(assigned.state), "availableReplicas": 1}
    if assigned.binding.uid:  # upstream has it too; an event about the binding needs it to be found
        spec["azureBindingRef"]["metadata"]["uid"] = assigned.binding.uid
    return obj


def render_conditions(conditions: Iterable[Condition]) -> list[dict[str, Any]]:
    """Write `status.conditions`."""
    return [
        {
            "type": one.type,
            "status": one.status,
            "reason": one.reason,
            "message": one.message,
            "lastTransitionTime": one.since,
            **({"observedGeneration": one.generation} if one.generation else {}),
        }
        for one in conditions
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
    known = {name.lower(): name for name in names}
    fresh = {key: value for key, value in holder.items() if key.lower() not in known}
    return {known[key.lower()]: _get(holder, known[key.lower()]) for key in holder if key.lower() in known} | fresh


class _Place:
    """One object and where it stands, so that every complaint names it."""

    def __init__(self, kind: str, obj: Json, inside: str = "") -> None:
        self.kind = kind
        self.metadata = _mapping(obj.get("metadata"))
        self.key = ObjectKey(str(self.metadata.get("namespace", "")), str(self.metadata.get("name", "")))
        self.where = inside or f"{kind} {self.key}"
        self.obj = obj
        self.spec = self._mapping_field(obj, "spec")

    def inner(self, name: str) -> "_Place":
        kind = "AzureIdentity" if name == "azureIdentityRef" else "AzureIdentityBinding"
        return _Place(kind, self.mapping(name), f"{self.where}: {name}")

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
            raise MalformedObjectError(f"{self.where}: {name} has more than {MOST_TEXTS} items; correct it")
        return tuple(self._short(name, item) for item in value)

    def _short(self, name: str, value: str) -> str:
        if len(value) > LONGEST_TEXT:
            raise MalformedObjectError(f"{self.where}: {name} is longer than {LONGEST_TEXT} characters; correct it")
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

    def wrong(self, name: str, expected: str, value: object) -> MalformedObjectError:
        return MalformedObjectError(f"{self.where}: {name} must be {expected}, not {type(value).__name__}; correct it")


def _identity(at: _Place, key: ObjectKey) -> AzureIdentity:
    secret = at.mapping("clientPassword")
    annotations = _mapping(at.metadata.get("annotations"))
    return AzureIdentity(
        key=key,
        type=at.number("type") or IdentityType.USER_ASSIGNED,
        resource_id=at.text("resourceID"),
        client_id=at.text("clientID"),
        client_password=_secret_reference(secret, key.namespace),
        tenant_id=at.text("tenantID"),
        auxiliary_tenant_ids=at.texts("auxiliaryTenantIDs"),
        ad_resource_id=at.text("adResourceID"),
        ad_endpoint=at.text("adEndpoint"),
        replicas=at.number("replicas"),
        namespaced=str(annotations.get(BEHAVIOR_ANNOTATION, "")).lower() == NAMESPACED_BEHAVIOR,
        stamp=hash(repr((annotations, at.metadata.get("labels")))),
        uid=str(at.metadata.get("uid", "")),
        conditions=_conditions(at.obj),
        generation=_whole(at.metadata.get("generation")),
    )


def _binding(at: _Place, key: ObjectKey) -> AzureIdentityBinding:
    return AzureIdentityBinding(
        key=key,
        azure_identity=at.text("azureIdentity"),
        selector=at.text("selector"),
        weight=at.number("weight") or 0,
        uid=str(at.metadata.get("uid", "")),
        node_selector=str(_mapping(at.metadata.get("annotations")).get(NODE_SELECTOR_ANNOTATION, ""))[: LONGEST + 1],
        conditions=_conditions(at.obj),
        generation=_whole(at.metadata.get("generation")),
    )


def _conditions(obj: Json) -> tuple[Condition, ...]:
    """Read conditions leniently: they inform, nothing depends on them."""
    listed = _mapping(obj.get("status")).get("conditions")
    return tuple(map(_condition, map(_mapping, listed if isinstance(listed, list) else ())))


def _condition(one: Json) -> Condition:
    kind, status, reason, message, since = (str(one.get(name, "")) for name in _CONDITION_TEXTS)
    return Condition(kind, status, reason, message, since, _whole(one.get("observedGeneration")))


_CONDITION_TEXTS = ("type", "status", "reason", "message", "lastTransitionTime")


def _secret_reference(secret: Json, namespace: str) -> SecretReference | None:
    name = str(_get(secret, "name") or "")
    return SecretReference(str(_get(secret, "namespace") or namespace), name) if name else None


def _state(at: _Place) -> AssignedState:
    text = str(_get(_mapping(_get(at.obj, "status")), "status") or AssignedState.ASSIGNED)
    try:
        return AssignedState(text.capitalize())
    except ValueError:
        states = ", ".join(AssignedState)
        raise MalformedObjectError(
            f'{at.where}: status "{redact.shown(text)}" is unknown; it must be one of: {states}'
        ) from None


def _get(holder: Json, name: str) -> Any:
    """The schema's spelling when it is set, else the first that differs only in case."""
    value = holder.get(name)
    if value is not None:
        return value
    wanted = name.lower()
    return next((item for key, item in holder.items() if key.lower() == wanted and item is not None), None)


def _whole(value: object) -> int:
    return value if isinstance(value, int) else 0


def _mapping(value: object) -> Json:
    return value if isinstance(value, Mapping) else {}


def _object(kind: str, key: ObjectKey, spec: dict[str, Any]) -> dict[str, Any]:
    metadata = {"name": key.name, "namespace": key.namespace}
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": metadata, "spec": spec}
