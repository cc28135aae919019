"""The OpenAPI v3 documents: what `kubectl explain` shows, and that each kind takes `fieldValidation`.

kubectl leaves validation to a server that takes `fieldValidation`. Fields of built-in kinds come from the protobuf
messages, which have no descriptions; those of custom resources from their definitions.
"""

from collections.abc import Iterable
from typing import Any

from podidentity_lab.kubernetes import protobuf
from podidentity_lab.kubernetes.kinds import Kind
from podidentity_lab.kubernetes.protobuf import Form

DESCRIPTION = "The lab's embedded Kubernetes has no descriptions: https://kubernetes.io/docs/reference/kubernetes-api/"
Json = dict[str, Any]
_PLAIN: dict[str, Json] = {
    "string": {"type": "string"},
    "bytes": {"type": "string", "format": "byte"},
    "bool": {"type": "boolean"},
    "int32": {"type": "integer", "format": "int32"},
    "int64": {"type": "integer", "format": "int64"},
    "Time": {"type": "string", "format": "date-time"},
    "MicroTime": {"type": "string", "format": "date-time"},
    "Quantity": {"type": "string"},
    "IntOrString": {"type": "string", "format": "int-or-string"},
    "FieldsV1": {"type": "object"},
    "RawExtension": {"type": "object"},
    "ExtraValue": {"type": "array", "items": {"type": "string"}},
    "Verbs": {"type": "array", "items": {"type": "string"}},
}


def document(kinds: Iterable[Kind], version: str) -> Json:
    """Return the document of one group and version."""
    paths, schemas = {}, {}
    for kind in kinds:
        group_version_kind = {"group": kind.group, "version": kind.version, "kind": kind.kind}
        place = f"/{kind.path}/{'namespaces/{namespace}/' if kind.namespaced else ''}{kind.plural}/{{name}}"
        operation = {
            "operationId": f"patch{kind.kind}",
            "parameters": [{"name": "fieldValidation", "in": "query", "schema": {"type": "string"}}],
            "responses": {"200": {"description": "OK"}},
            "x-kubernetes-group-version-kind": group_version_kind,
        }
        paths[place] = {"patch": operation}
        schema = kind.schema or _message(kind.kind)
        schemas[f"{kind.api_version}.{kind.kind}"] = {**schema, "x-kubernetes-group-version-kind": [group_version_kind]}
        if kind.schema is None:
            schemas |= {name: _message(name) for name in _parts(kind.kind)}
    info = {"title": "podidentity lab", "version": version}
    return {"openapi": "3.0.0", "info": info, "paths": paths, "components": {"schemas": schemas}}


def _parts(name: str) -> set[str]:
    """Return the messages that a message consists of."""
    forms, names, queue = protobuf.forms(), set[str](), {name}
    while queue:
        kinds = {form.kind for form in forms.get(queue.pop(), ())} - _PLAIN.keys()
        queue |= kinds - names
        names |= kinds
    return names


def _message(name: str) -> Json:
    properties: Json = {}
    for form in protobuf.forms().get(name, ()):
        properties |= _message(form.kind)["properties"] if form.inline else {form.name: _field(form)}
    return {"type": "object", "description": DESCRIPTION, "properties": properties}


def _field(form: Form) -> Json:
    plain = _PLAIN.get(form.kind) or {"allOf": [{"$ref": f"#/components/schemas/{form.kind}"}]}
    if form.label == "*":
        return {"type": "array", "items": plain}
    return {"type": "object", "additionalProperties": plain} if form.label == "%" else plain
