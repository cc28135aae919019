"""Label selectors as text (`pool=gpu,zone!=1,!spot`), as far as bindings choose nodes with them.

The grammar is that of Kubernetes' equality-based selectors and of existence
(kubernetes.io/docs/concepts/overview/working-with-objects/labels).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from podidentity.core.model import redact

LONGEST = 1024
"""Characters of a selector. A tenant writes it, and each node's labels are compared with each of its terms."""
_TERM = re.compile(r"(?P<absent>!)?\s*(?P<name>[\w./-]+)\s*(?:(?P<operator>==?|!=)\s*(?P<value>[\w.-]*))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Term:
    """One requirement. `value` is None when only the label's existence counts; `negated` turns it round."""

    name: str
    value: str | None
    negated: bool

    def holds(self, labels: Mapping[str, str]) -> bool:
        """Whether labels fulfil it. As in Kubernetes, `name!=value` also holds without the label."""
        value = labels.get(self.name)
        fits = value is not None if self.value is None else value == self.value
        return fits != self.negated


@dataclass(frozen=True, slots=True)
class LabelSelector:
    """All terms must hold; without any, everything is selected."""

    terms: tuple[Term, ...] = ()

    def selects(self, labels: Mapping[str, str]) -> bool:
        """Whether an object with these labels is selected."""
        return all(term.holds(labels) for term in self.terms)


@dataclass(frozen=True, slots=True)
class BadSelector:
    """A text that is not a selector, and why not."""

    message: str


def parse_selector(text: str) -> LabelSelector | BadSelector:
    """Return the selector that a text spells, or why it spells none."""
    if len(text) > LONGEST:
        return BadSelector(f"it is longer than {LONGEST} characters; choose nodes by fewer labels")
    terms = []
    for part in filter(None, map(str.strip, text.split(","))):
        match = _TERM.fullmatch(part)
        if match is None or (match["absent"] and match["operator"]):
            return BadSelector(
                f'"{redact.printable(part)}" is no label selector; write name=value, name!=value, name or !name'
            )
        negated = bool(match["absent"]) or match["operator"] == "!="
        terms.append(Term(match["name"], match["value"] if match["operator"] else None, negated))
    return LabelSelector(tuple(terms))
