"""Objects that clients send as protobuf, as JSON objects: what `kubectl create namespace` and its like write.

Only the kinds below are known; every other is refused with a sentence. Field numbers: the API's `generated.proto` files
(kubernetes.io/docs/reference/using-api/api-concepts, "Kubernetes Protobuf encoding"). Called by `writing`.
"""

import functools
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from google.protobuf.message import DecodeError, Message

from podidentity.lab.kubernetes.statuses import ApiError

MAGIC = b"k8s\x00"
PACKAGE = "kubernetes"
Json = dict[str, Any]

# Fields in the order of their numbers: name:type, `*` for a list, `%` for a map from text, `-` for a number not used.
_MESSAGES = {
    "TypeMeta": "apiVersion:string kind:string",
    "Unknown": "typeMeta:TypeMeta raw:bytes contentEncoding:string contentType:string",
    "ObjectMeta": "name:string generateName:string namespace:string - - - - - - - labels:%string annotations:%string"
    " ownerReferences:*OwnerReference finalizers:*string",
    "OwnerReference": "kind:string - name:string uid:string apiVersion:string controller:bool blockOwnerDeletion:bool",
    "Namespace": "metadata:ObjectMeta",
    "ServiceAccount": "metadata:ObjectMeta - - automountServiceAccountToken:bool",
    "ConfigMap": "metadata:ObjectMeta data:%string binaryData:%bytes immutable:bool",
    "Secret": "metadata:ObjectMeta data:%bytes type:string stringData:%string immutable:bool",
    "PolicyRule": "verbs:*string apiGroups:*string resources:*string resourceNames:*string nonResourceURLs:*string",
    "Role": "metadata:ObjectMeta rules:*PolicyRule",
    "ClusterRole": "metadata:ObjectMeta rules:*PolicyRule",
    "Subject": "kind:string apiGroup:string name:string namespace:string",
    "RoleRef": "apiGroup:string kind:string name:string",
    "RoleBinding": "metadata:ObjectMeta subjects:*Subject roleRef:RoleRef",
    "ClusterRoleBinding": "metadata:ObjectMeta subjects:*Subject roleRef:RoleRef",
    "ResourceAttributes": "namespace:string verb:string group:string version:string resource:string subresource:string"
    " name:string",
    "NonResourceAttributes": "path:string verb:string",
    "AccessReviewSpec": "resourceAttributes:ResourceAttributes nonResourceAttributes:NonResourceAttributes",
    "SelfSubjectAccessReview": "metadata:ObjectMeta spec:AccessReviewSpec",
    "TokenRequestSpec": "audiences:*string - - expirationSeconds:int",
    "TokenRequest": "metadata:ObjectMeta spec:TokenRequestSpec",
}
_KINDS = frozenset(name for name, fields in _MESSAGES.items() if fields.startswith("metadata:"))
_Field = descriptor_pb2.FieldDescriptorProto
# `int` fits what is used here; JSON would show a 64-bit number as text.
_TYPES = {
    "string": _Field.TYPE_STRING,
    "bytes": _Field.TYPE_BYTES,
    "bool": _Field.TYPE_BOOL,
    "int": _Field.TYPE_INT32,
}


def read(body: bytes) -> Json:
    """Decode one object. Raises ApiError 400 for what is no such encoding, 415 for a kind that is not known here."""
    if not body.startswith(MAGIC):
        raise ApiError(400, "the body is not in Kubernetes' protobuf encoding")
    envelope: Any = _decoded("Unknown", body[len(MAGIC) :])
    kind = str(envelope.typeMeta.kind)
    if kind not in _KINDS:
        raise ApiError(
            415,
            f"the lab's embedded Kubernetes takes {kind or 'this kind'} as JSON or YAML only: write a manifest and use "
            f"kubectl create -f, or use --kubernetes=real",
        )
    told = json_format.MessageToDict(_decoded(kind, envelope.raw), preserving_proto_field_name=True)
    return {"apiVersion": str(envelope.typeMeta.apiVersion), "kind": kind, **told}


def _decoded(name: str, raw: bytes) -> Message:
    message = _classes()[f"{PACKAGE}.{name}"]()
    try:
        message.ParseFromString(raw)
    except DecodeError as error:
        raise ApiError(400, f"the object provided cannot be decoded: {error}") from None
    return message


@functools.cache
def _classes() -> dict[str, type[Message]]:
    file = descriptor_pb2.FileDescriptorProto(name="kubernetes.proto", package=PACKAGE, syntax="proto2")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, field in enumerate(fields.split(), start=1):
            if field != "-":
                _add(message, number, *field.split(":"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    classes: dict[str, type[Message]] = message_factory.GetMessageClassesForFiles([file.name], pool)
    return classes


def _add(message: descriptor_pb2.DescriptorProto, number: int, name: str, kind: str) -> None:
    repeated = kind[0] in "*%"
    field = message.field.add(
        name=name, number=number, label=_Field.LABEL_REPEATED if repeated else _Field.LABEL_OPTIONAL
    )
    plain = kind.lstrip("*%")
    if kind.startswith("%"):
        # A map is a list of messages of key and value, as protobuf's own compiler makes it.
        entry = message.nested_type.add(name=f"{name[0].upper()}{name[1:]}Entry")
        entry.options.map_entry = True
        _add(entry, 1, "key", "string")
        _add(entry, 2, "value", plain)
        field.type, field.type_name = _Field.TYPE_MESSAGE, f".{PACKAGE}.{message.name}.{entry.name}"
    elif plain in _TYPES:
        field.type = _TYPES[plain]
    else:
        field.type, field.type_name = _Field.TYPE_MESSAGE, f".{PACKAGE}.{plain}"
