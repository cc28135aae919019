"""docs/reference/chart.md: the values of each chart, with the comments that stand above them."""

import json
import re
from collections.abc import Iterator
from typing import Any

import yaml

from references.source import ROOT, table

CHARTS = ROOT / "charts"
INTRODUCTION = """\
# Values of the Helm charts

Written by tools/reference.py from each chart's `values.yaml`. In `charts/aad-pod-identity`, names are those of
aad-pod-identity's chart. `""` leaves the daemon's own default ([flags](flags.md)). `values.schema.json` refuses what is
not here.
"""
_KEY = re.compile(r"^( *)([A-Za-z_]\w*):")


def page() -> str:
    """Return the whole page."""
    text = INTRODUCTION
    for values in sorted(CHARTS.glob("*/values.yaml")):
        comments = dict(_comments(values.read_text()))
        leaves = _leaves("", yaml.safe_load(values.read_text()))
        rows = [(f"`{path}`", f"`{value}`", comments.get(path, "")) for path, value in leaves]
        text += f"\n## {values.parent.name}\n\n" + table(("value", "default", "meaning"), rows)
    return text


def _leaves(path: str, values: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        inside = f"{path}.{name}".lstrip(".")
        if isinstance(value, dict) and value:
            yield from _leaves(inside, value)
        else:
            yield inside, json.dumps(value)


def _comments(text: str) -> Iterator[tuple[str, str]]:
    """Yield what stands above each value, by the value's path; a blank line ends a comment, as does another value."""
    parents: list[tuple[int, str]] = []
    comment: list[str] = []
    for line in text.splitlines():
        if line.lstrip().startswith("# "):
            comment.append(line.lstrip()[2:])
            continue
        key = _KEY.match(line)
        if key:
            parents = [parent for parent in parents if parent[0] < len(key[1])] + [(len(key[1]), key[2])]
            yield ".".join(name for _, name in parents), " ".join(comment)
        comment = []
