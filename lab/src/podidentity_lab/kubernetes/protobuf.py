"""Objects that clients send as protobuf, as JSON objects: kubectl's `create namespace`, and every Go controller.

The fields of all messages are in `data/protobuf-fields.txt`, which `tools/protobuf_fields.py` makes from Kubernetes'
own definitions: a line for each message, its fields in the order of their numbers (`-`: not used) as `name:type`.
`*` before the type is a list, `%` a map from text, `?` a pointer, whose zero is not the same as its absence; `+` before
the name marks fields that belong to the object around them. Encoding:
kubernetes.io/docs/reference/using-api/api-concepts, "Kubernetes Protobuf encoding".
"""

import base64
import datetime as dt
import functools
import json
from collections.abc import Callable
from importlib import resources
from typing import Any, NamedTuple

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from podidentity_lab.kubernetes.statuses import ApiError

MAGIC = b"k8s\x00"
PACKAGE = "kubernetes"
Json = dict[str, Any]
_Field = descriptor_pb2.FieldDescriptorProto
_TYPES = {
    "string": _Field.TYPE_STRING,
    "bytes": _Field.TYPE_BYTES,
    "bool": _Field.TYPE_BOOL,
    "int32": _Field.TYPE_INT32,
    "int64": _Field.TYPE_INT64,
}


class Form(NamedTuple):
    """One field of a message."""

    name: str
    kind: str
    label: str
    """`*` for a list, `%` for a map, `?` for a pointer, or nothing."""
    inline: bool


def read(body: bytes) -> Json:
    """Decode one object. Raises ApiError 400 for what is no such encoding, 415 for a kind that is not served here."""
    if not body.startswith(MAGIC):
        raise ApiError(400, "the body is not in Kubernetes' protobuf encoding")
    envelope = _decode("Unknown", body[len(MAGIC) :])
    kind = str(envelope.typeMeta.kind)
    if kind not in forms():
        raise ApiError(
            415,
            f"the lab's embedded Kubernetes takes {kind or 'this kind'} as JSON or YAML only: write a manifest and use "
            f"kubectl create -f, or use --kubernetes=real",
        )
    fields = _to_json(_decode(kind, envelope.raw))
    return {"apiVersion": str(envelope.typeMeta.apiVersion), "kind": kind, **fields}


def _decode(name: str, raw: bytes) -> Any:
    message: Any = _classes()[f"{PACKAGE}.{name}"]()
    try:
        message.ParseFromString(raw)
    except DecodeError as error:
        raise ApiError(400, f"the object provided cannot be decoded: {error}") from None
    return message


def _to_json(message: Any) -> Any:
    """Return a message as Kubernetes writes it in JSON; what is empty and no pointer is left out (`omitempty`)."""
    name = message.DESCRIPTOR.name
    if name in _SPECIAL:
        return _SPECIAL[name](message)
    result: Json = {}
    for form in forms()[name]:
        value = getattr(message, form.name)
        if form.label == "%":
            result |= {form.name: {key: _value(item) for key, item in value.items()}} if value else {}
        elif form.label == "*":
            result |= {form.name: [_value(item) for item in value]} if value else {}
        elif message.HasField(form.name):
            plain = _value(value)
            if form.inline:
                result |= plain
            elif form.label == "?" or plain not in (None, "", 0, False, {}):
                result[form.name] = plain
    return result


def _value(value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return _to_json(value) if hasattr(value, "DESCRIPTOR") else value


def _moment(message: Any, timespec: str) -> str | None:
    """Return a time as text; the zero time of Go is no time. Raises ApiError 400 for one that no calendar has."""
    if not message.seconds:
        return None
    try:
        moment = dt.datetime.fromtimestamp(message.seconds, dt.UTC).replace(microsecond=message.nanos // 1000)
    except (ValueError, OverflowError, OSError):
        raise ApiError(400, f"the object provided has a time that does not exist: {message.seconds} s") from None
    return moment.replace(tzinfo=None).isoformat(timespec=timespec) + "Z"


def _embedded_json(raw: bytes) -> Any:
    try:
        return json.loads(raw or b"null")
    except ValueError:
        raise ApiError(400, "the object provided holds an object that is not JSON") from None


_SPECIAL: dict[str, Callable[[Any], Any]] = {
    "Time": lambda message: _moment(message, "seconds"),
    "MicroTime": lambda message: _moment(message, "microseconds"),
    "Quantity": lambda message: message.string,
    "IntOrString": lambda message: message.strVal if message.type else message.intVal,
    "FieldsV1": lambda message: _embedded_json(message.Raw),
    "RawExtension": lambda message: _embedded_json(message.raw),
    "ExtraValue": lambda message: list(message.items),
    "Verbs": lambda message: list(message.items),
}
"""Messages that JSON writes in a form of their own."""


@functools.cache
def forms() -> dict[str, tuple[Form, ...]]:
    """Return the fields of each message, without their numbers."""
    return {name: tuple(form for form in forms if form is not None) for name, forms in _table().items()}


@functools.cache
def _table() -> dict[str, list[Form | None]]:
    text = (resources.files("podidentity_lab") / "data/protobuf-fields.txt").read_text()
    lines = (line.split() for line in text.splitlines())
    return {name: [None if field == "-" else _form(field) for field in fields] for name, *fields in lines}


def _form(field: str) -> Form:
    name, _, kind = field.partition(":")
    plain = kind.lstrip("*%?")
    return Form(name.lstrip("+"), plain, kind.removesuffix(plain), inline=name.startswith("+"))


@functools.cache
def _classes() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="kubernetes.proto", package=PACKAGE, syntax="proto2")
    for name, forms in _table().items():
        message = file.message_type.add(name=name)
        for number, form in enumerate(forms, start=1):
            if form is not None:
                _add(message, number, form)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    classes: dict[str, Any] = message_factory.GetMessageClassesForFiles([file.name], pool)
    return classes


def _add(message: descriptor_pb2.DescriptorProto, number: int, form: Form) -> None:
    label = _Field.LABEL_REPEATED if form.label in {"*", "%"} else _Field.LABEL_OPTIONAL
    field = message.field.add(name=form.name, number=number, label=label)
    if form.label == "%":
        # A map is a list of messages of key and value, as protobuf's own compiler makes it.
        entry = message.nested_type.add(name=f"{form.name[0].upper()}{form.name[1:]}Entry")
        entry.options.map_entry = True
        _add(entry, 1, Form("key", "string", "", inline=False))
        _add(entry, 2, Form("value", form.kind, "", inline=False))
        field.type, field.type_name = _Field.TYPE_MESSAGE, f".{PACKAGE}.{message.name}.{entry.name}"
    elif form.kind in _TYPES:
        field.type = _TYPES[form.kind]
    else:
        field.type, field.type_name = _Field.TYPE_MESSAGE, f".{PACKAGE}.{form.kind}"
