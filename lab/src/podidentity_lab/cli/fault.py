"""`podidentity lab fault`: what the lab's Azure does wrong, and how slow it is, on request."""

import json
from typing import Any

import click

from podidentity.errors import UsageError
from podidentity_lab import control
from podidentity_lab.cli import options
from podidentity_lab.directory import Directory


@click.group()
def fault() -> None:
    """Let the lab's Azure answer wrongly or slowly, to see what your program makes of it."""


@fault.command("set")
@options.OF_THIS_SHELL
@click.argument("faults", nargs=-1, required=True, metavar="FAULT=VALUE...")
def set_faults(name: str, faults: tuple[str, ...]) -> None:
    """Set faults; `lab fault show` lists them all. A list of statuses is answered one by one, then the truth again.

    Example: podidentity lab fault set imds_statuses=429,500 retry_after_seconds=2
    """
    lab = options.ready(name)
    current = control.ask(lab, "GET", "/azure/faults")
    _change(lab, dict(_parse(text, current) for text in faults))


@fault.command("show")
@options.OF_THIS_SHELL
@click.option("--output", "-o", type=click.Choice(["text", "json"]), default="text", show_default=True)
def show_faults(name: str, output: str) -> None:
    """Show every fault and its value.

    Example: podidentity lab fault show
    """
    _print(control.ask(options.ready(name), "GET", "/azure/faults"), output)


@fault.command("clear")
@options.OF_THIS_SHELL
def clear_faults(name: str) -> None:
    """Set every fault back to what it was when the lab started.

    Example: podidentity lab fault clear
    """
    control.ask(options.ready(name), "DELETE", "/azure/faults")
    click.echo("no faults")


def _change(lab: Directory, fields: dict[str, Any]) -> None:
    answer = control.ask(lab, "PATCH", "/azure/faults", content=fields)
    if "error" in answer:
        raise UsageError(f"lab fault set: {answer['error']}; `podidentity lab fault show` has each with its value")
    _print({name: answer[name] for name in fields}, "text")


def _parse(text: str, current: dict[str, Any]) -> tuple[str, Any]:
    """Read `NAME=VALUE`; what the value may be is the lab's to say."""
    name, sign, value = text.partition("=")
    name = name.strip().replace("-", "_")
    if not sign or name not in current:
        raise UsageError(f"lab fault set {text!r}: it is no fault; give FAULT=VALUE, with one of {', '.join(current)}")
    if isinstance(current[name], list):
        return name, [_scalar(item) for item in value.split(",") if item]
    return name, _scalar(value)


def _scalar(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _print(faults: dict[str, Any], output: str) -> None:
    if output == "json":
        click.echo(json.dumps(faults, indent=2))
        return
    for name, value in faults.items():
        text = ",".join(map(str, value)) if isinstance(value, list) else json.dumps(value)
        click.echo(f"{name}={text}")
