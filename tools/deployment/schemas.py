"""Building blocks of the CRDs' schemas: fields in both spellings, embedded objects, validation rules, conditions.

Upstream decoded field names without regard to case, and old manifests spell them with a capital. A field that the
schema does not name is refused by `kubectl` and dropped by the API server; that is why both spellings stand here.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from deployment.settings import Json

TEXT: Json = {"type": "string"}
NUMBER: Json = {"type": "integer"}
COUNT: Json = {"type": "integer", "format": "int32"}
OPTIONAL_COUNT: Json = {**COUNT, "nullable": True}
OPEN: Json = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
LABELS: Json = {"type": "object", "additionalProperties": TEXT}
GUID: Json = {"type": "string", "maxLength": 64}
OPTIONAL_GUIDS: Json = {"type": "array", "items": GUID, "maxItems": 8, "nullable": True}


@dataclass(frozen=True, slots=True)
class Field:
    """One field: its name, its shape, what it means, and how old manifests spell it ("": the same)."""

    name: str
    shape: Json
    meaning: str
    old: str = ""

    def properties(self) -> Json:
        """Return the schema of the field by its name and, when it has one, by its old spelling."""
        properties = {self.name: {"description": self.meaning, **self.shape}}
        if self.old:
            warning = f"Deprecated spelling of `{self.name}`, read when that one is absent."
            properties[self.old] = {"description": warning, **self.shape}
        return properties


@dataclass(frozen=True, slots=True)
class Rule:
    """A condition over `self` in the Common Expression Language, and the message to a user who breaks it."""

    holds: str
    message: str


def structure(meaning: str, fields: Iterable[Field], rules: Iterable[Rule] = ()) -> Json:
    """Return the schema of an object with named fields; the API server checks `rules` on every write."""
    properties: Json = {}
    for field in fields:
        properties |= field.properties()
    schema: Json = {"description": meaning, "type": "object", "properties": properties}
    validations = [{"rule": rule.holds, "message": rule.message} for rule in rules]
    if validations:
        schema["x-kubernetes-validations"] = validations
    return schema


def embedded() -> Json:
    """Return the schema of an object inside another, with apiVersion, kind and metadata; its fields are unchecked."""
    return {**OPEN, "x-kubernetes-embedded-resource": True}


def conditions() -> Json:
    """Return the schema of Kubernetes' standard list of conditions."""
    texts = {
        "type": "What the condition is about, in CamelCase.",
        "status": "Whether it holds: True, False or Unknown.",
        "reason": "Why, in one CamelCase word.",
        "message": "Why, in one sentence.",
    }
    properties: Json = {name: {"description": meaning, **TEXT} for name, meaning in texts.items()}
    properties["status"]["enum"] = ["True", "False", "Unknown"]
    properties["lastTransitionTime"] = {"description": "When it last changed.", **TEXT, "format": "date-time"}
    properties["observedGeneration"] = {"description": "The generation it was seen at.", **NUMBER, "format": "int64"}
    return {
        "type": "array",
        "maxItems": 16,
        "items": {"type": "object", "required": ["type", "status"], "properties": properties},
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
    }
