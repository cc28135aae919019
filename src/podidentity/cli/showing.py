"""How findings are printed: for people, in colour on a terminal, or as JSON. Shared by `explain` and `doctor`."""

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape

from podidentity.core.findings import Finding, Verdict

OUTPUT = click.option(
    "--output", type=click.Choice(["text", "json"]), default="text", show_default=True, help="For people or programs."
)
KUBECONFIG = click.option("--kubeconfig", default="", help="Path of a kubeconfig; empty: KUBECONFIG, ~/.kube/config.")

_MARKS = {
    Verdict.OK: ("✓", "green"),
    Verdict.NOTE: ("·", "cyan"),
    Verdict.UNKNOWN: ("?", "yellow"),
    Verdict.WAIT: ("…", "yellow"),
    Verdict.PROBLEM: ("✗", "red"),
}
_WIDTH = 13


def show(findings: Iterable[Finding], output: str) -> None:
    """Print findings."""
    if output == "json":
        shown: list[dict[str, Any]] = [asdict(one) for one in findings]
        print(json.dumps(shown, indent=2))
        return
    console = Console(soft_wrap=True, highlight=False, file=sys.stdout)
    for one in findings:
        mark, colour = _MARKS[one.verdict]
        console.print(f"[{colour}]{mark}[/] [bold]{one.check:<{_WIDTH}}[/]{escape(one.what)}")
        if one.todo:
            console.print(f"  {'':<{_WIDTH}}[dim]→[/] {escape(one.todo)}")


def home() -> Path | None:
    """Where a person's kubeconfig may be; None for users without a home."""
    try:
        return Path.home()
    except RuntimeError:
        return None
