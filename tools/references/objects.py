"""docs/reference/objects.md: the fields of the custom resources."""

from collections.abc import Iterator
from typing import Any

from deployment import crds

from references.source import table

INTRODUCTION = """\
# Custom resources

Written by tools/reference.py from the definitions that are installed. All are of the API `{api}`. Fields with an
old, capitalised spelling (`ClientID`) are read in both; the one here counts when both are set. `kubectl explain` knows
the same. Rules are checked by the API server on every write.
"""


def page() -> str:
    """Return the whole page."""
    definitions = sorted(crds.all_definitions(), key=lambda crd: str(crd["spec"]["names"]["kind"]))
    spec = definitions[0]["spec"]
    text = INTRODUCTION.format(api=f"{spec['group']}/{spec['versions'][0]['name']}")
    return text + "".join(_section(crd["spec"]) for crd in definitions)


def _section(spec: dict[str, Any]) -> str:
    schema = spec["versions"][0]["schema"]["openAPIV3Schema"]
    rows = [row for part in ("spec", "status") for row in _fields(part, schema["properties"].get(part, {}))]
    rules = list(_rules("", schema))
    text = f"\n## {spec['names']['kind']}\n\n{schema['description']}\n\n{table(('field', 'type', 'meaning'), rows)}"
    return text + ("\nRules:\n\n" + "".join(f"- {rule}\n" for rule in rules) if rules else "")


def _fields(path: str, schema: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for name, field in schema.get("properties", {}).items():
        if field.get("description", "").startswith("Deprecated spelling"):
            continue
        kind = field.get("type", "")
        options = "".join(f" `{value}`" for value in field.get("enum", ()))
        yield f"`{path}.{name}`", kind, field.get("description", "") + (f" One of{options}." if options else "")
        yield from _fields(f"{path}.{name}", field)
        if kind == "array":
            yield from _fields(f"{path}.{name}[]", field["items"])


def _rules(path: str, schema: dict[str, Any]) -> Iterator[str]:
    for rule in schema.get("x-kubernetes-validations", ()):
        yield f"{f'`{path}`: ' if path else ''}{rule['message']}"
    for name, field in schema.get("properties", {}).items():
        yield from _rules(f"{path}.{name}".lstrip("."), field)
