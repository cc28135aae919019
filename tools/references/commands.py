"""docs/reference/commands.md: every command with its arguments, options, example and exit statuses."""

import inspect
from collections.abc import Iterator

import click

from podidentity import errors
from podidentity.cli import commands
from podidentity.cli.main import DAEMONS, INTERRUPTED_STATUS, TERMINATED_STATUS
from podidentity.cli.report import WAITING_STATUS
from references.source import table

INTRODUCTION = """\
# Commands

Written by tools/reference.py from the commands themselves. `podidentity COMMAND --help` says the same on a terminal.
"""
_EXAMPLE = "Example: "


def page() -> str:
    """Return the whole page."""
    text = INTRODUCTION + "\n## Exit statuses\n\n" + table(("status", "means"), list(statuses()))
    for path, command in leaves(("podidentity",), commands.cli):
        text += f"\n## `{' '.join(path)}`\n\n"
        if path[1] in DAEMONS:
            anchor = f"podidentity-{path[1]}"
            text += f"{command.short_help} Its flags: [flags](flags.md#{anchor}).\n"
        else:
            text += _section(command)
    return text


def statuses() -> Iterator[tuple[str, str]]:
    """Yield each exit status with its meaning; those of errors are of the error tree."""
    yield "0", "It did what it was asked. `explain`, `doctor`, `verify`: all is well."
    yield (
        "1",
        "`explain`, `doctor`, `verify`: something is wrong, and stays wrong until somebody acts. Others: it failed.",
    )
    meanings = {"2": "wrong command line, file, variable or setting", "3": "this machine lacks a program or a right"}
    meanings |= {"4": "the Kubernetes API refused or did not answer", "5": "Azure refused or did not answer"}
    statuses_of_errors = {str(member.exit_status) for member in vars(errors).values() if hasattr(member, "exit_status")}
    if statuses_of_errors - {"1"} != meanings.keys():
        raise SystemExit(
            f"tools/references/commands.py: its table lacks some of {sorted(statuses_of_errors)}; correct it"
        )
    yield from ((status, f"{meaning}: [errors](errors.md)") for status, meaning in meanings.items())
    yield str(WAITING_STATUS), "`explain`, `doctor`, `verify`: not yet; it passes by itself. Ask again."
    yield str(INTERRUPTED_STATUS), "Ctrl-C ended it."
    yield str(TERMINATED_STATUS), "SIGTERM ended it."


def leaves(path: tuple[str, ...], command: click.Command) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Yield each command that does something, with the words that name it."""
    if not isinstance(command, click.Group) or command.invoke_without_command:
        yield path, command
    if not isinstance(command, click.Group):
        return
    context = click.Context(command, info_name=path[-1])
    for name in command.list_commands(context):
        inner = command.get_command(context, name)
        if inner is not None and not inner.hidden:
            yield from leaves((*path, name), inner)


def example(command: click.Command) -> str:
    """Return the command's example; "" where it has none."""
    lines = inspect.cleandoc(command.help or "").splitlines()
    return next((line.removeprefix(_EXAMPLE) for line in lines if line.startswith(_EXAMPLE)), "")


def _section(command: click.Command) -> str:
    body = [line for line in inspect.cleandoc(command.help or command.short_help or "").splitlines() if line != "\b"]
    text = "\n".join(line for line in body if not line.startswith(_EXAMPLE)).strip() + "\n"
    words = [
        parameter.make_metavar(click.Context(command))
        for parameter in command.params
        if isinstance(parameter, click.Argument)
    ]
    if words:
        text += f"\nArguments: `{' '.join(words)}`\n"
    if example(command):
        text += f"\n```\n{example(command)}\n```\n"
    rows = [
        _option(parameter)
        for parameter in command.params
        if isinstance(parameter, click.Option) and not parameter.hidden
    ]
    return text + (f"\n{table(('option', 'default', 'meaning'), rows)}" if rows else "")


def _option(option: click.Option) -> tuple[str, ...]:
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    choices = f" One of {', '.join(map(str, option.type.choices))}." if isinstance(option.type, click.Choice) else ""
    default = option.default if isinstance(option.default, str | int | float) and not option.is_flag else ""
    return names, f"`{default}`" if default not in ("", None) else "", (option.help or "") + choices
