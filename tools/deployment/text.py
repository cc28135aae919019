"""Objects as YAML for people: lists indented, keys in their own order, long sentences folded."""

from collections.abc import Iterable
from typing import Any

import yaml

from deployment.settings import Json

WIDTH = 120


class _Dumper(yaml.SafeDumper):
    """Indents lists below their key, and never writes anchors."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: FBT001, FBT002, ARG002  PyYAML's own signature
        super().increase_indent(flow, False)

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002  PyYAML's own signature
        return True


def render(header: str, objects: Iterable[Json]) -> str:
    """Return the text of a YAML file: the header as comments, then the objects."""
    comment = "".join(f"# {line}\n" for line in header.splitlines())
    documents = "---\n".join(_document(value) for value in objects)
    return f"{comment}{documents}"


def _document(value: Json) -> str:
    text = yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=WIDTH, allow_unicode=True)
    return str(text)
