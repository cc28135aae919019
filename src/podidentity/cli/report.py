"""Prints findings: for people, in colour on a terminal, or as JSON or YAML. Says which exit status they make."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click
import yaml
from rich.console import Console
from rich.markup import escape

from podidentity.core.report.findings import Finding, Verdict

API_VERSION = "podidentity.io/v1"
"""The version of what programs read: fields may be added to it, none is renamed or removed."""
WAITING_STATUS = 6
"""The exit status for "not yet": nobody has to act, it passes by itself. A problem's is 1."""
FORMATS = ("text", "wide", "json", "yaml")
OUTPUT = click.option(
    "--output",
    "-o",
    type=click.Choice(FORMATS),
    default="text",
    show_default=True,
    help="text and wide are for people, json and yaml for programs.",
)

_MARKS = {
    Verdict.OK: ("✓", "green"),
    Verdict.NOTE: ("·", "cyan"),
    Verdict.UNKNOWN: ("?", "yellow"),
    Verdict.WAIT: ("…", "yellow"),
    Verdict.PROBLEM: ("✗", "red"),
}
_STATUSES = {Verdict.OK: 0, Verdict.WAIT: WAITING_STATUS, Verdict.PROBLEM: 1}
_WIDTH = 13


def outcome_of(findings: Iterable[Finding]) -> Verdict:
    """Return what findings come to: a problem, else a wait, else all is well."""
    verdicts = {finding.verdict for finding in findings}
    return next((verdict for verdict in (Verdict.PROBLEM, Verdict.WAIT) if verdict in verdicts), Verdict.OK)


def status_of(outcomes: Iterable[Verdict]) -> int:
    """Return the exit status of several outcomes: the worst one's."""
    statuses = {_STATUSES[outcome] for outcome in outcomes}
    return next((status for status in (1, WAITING_STATUS) if status in statuses), 0)


def document(kind: str, findings: Sequence[Finding], **fields: Any) -> dict[str, Any]:
    """Return findings as programs read them; `fields` come first, such as the pod that they are about."""
    entries = [
        {"check": finding.check, "verdict": str(finding.verdict), "what": finding.message, "todo": finding.todo}
        for finding in findings
    ]
    outcome = str(outcome_of(findings))
    return {"apiVersion": API_VERSION, "kind": kind, **fields, "outcome": outcome, "findings": entries}


def list_document(kind: str, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return several documents as one."""
    return {"apiVersion": API_VERSION, "kind": kind, "items": list(items)}


def show_document(content: Mapping[str, Any], output: str) -> None:
    """Print a document as `json` or `yaml`."""
    if output == "yaml":
        print(yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=1000), end="")
    else:
        print(json.dumps(content, indent=2))


def show(findings: Iterable[Finding], output: str) -> None:
    """Print findings for people: one line each, and below it what to do; `wide` also names each verdict."""
    console = Console(soft_wrap=True, highlight=False, file=sys.stdout)
    findings = tuple(findings)
    width = max(_WIDTH, *(len(finding.check) + 1 for finding in findings), 0)
    for finding in findings:
        mark, colour = _MARKS[finding.verdict]
        verdict = f"{finding.verdict:<8}" if output == "wide" else ""
        console.print(f"[{colour}]{mark}[/] {verdict}[bold]{finding.check:<{width}}[/]{escape(finding.message)}")
        if finding.todo:
            console.print(f"  {'':<{len(verdict) + width}}[dim]→[/] {escape(finding.todo)}")


def show_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table as kubectl does: columns as wide as their longest cell, the last as it is."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        cells = [f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)]
        print("   ".join(cells).rstrip())
