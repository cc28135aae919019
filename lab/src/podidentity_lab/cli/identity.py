"""`podidentity lab env` and `lab run`: the lab for programs of the host, and the identity that they are in it."""

import json
import shlex
from collections.abc import Callable, Mapping

import click

from podidentity.errors import UsageError
from podidentity_lab import environment
from podidentity_lab.cli import options, shell
from podidentity_lab.environment import Dialect

Variables = Mapping[str, str | None]
"""Values by name; None: the variable must not be set."""


@click.command("env")
@options.OF_THIS_SHELL
@options.IDENTITY
@click.option(
    "--output",
    "-o",
    type=click.Choice(["shell", "dotenv", "json"]),
    default="shell",
    show_default=True,
    help="For `eval`, for an .env file, or for programs.",
)
def env(name: str, identity: str | None, output: str) -> None:
    """Print what a shell or a program needs to work in a lab.

    Example: eval "$(podidentity lab env)"
    """
    lab = options.ready(name)
    variables: Variables = {**dict.fromkeys(environment.UNSET), **environment.variables(lab)}
    if identity is not None:
        variables = environment.identity_variables(lab, environment.identity(lab, identity), "app-service")
    click.echo(_RENDERERS[output](variables))


@click.command("run", context_settings={"allow_interspersed_args": False})
@options.OF_THIS_SHELL
@options.IDENTITY
@options.DIALECT
@click.argument("command", nargs=-1, required=True)
def run(name: str, identity: str | None, dialect: Dialect, command: tuple[str, ...]) -> None:
    """Run a command in a lab; with --identity every client of Azure in it is that managed identity.

    Unmodified SDKs, az and whatever else asks for a managed identity's tokens. The exit status is the command's own.

    Example: podidentity lab run --identity reader -- az login --identity
    """
    if not command[0]:
        raise UsageError("lab run: the command is empty; write for example `podidentity lab run -- az account show`")
    shell.execute(options.ready(name), identity, dialect, command)


def _shell(variables: Variables) -> str:
    lines = [
        f"unset {name}" if value is None else f"export {name}={shlex.quote(value)}" for name, value in variables.items()
    ]
    return "\n".join(lines)


def _dotenv(variables: Variables) -> str:
    """Every reader of such files takes double quotes; none can unset a variable, so that one is empty."""
    return "\n".join(f"{name}={json.dumps(value or '', ensure_ascii=False)}" for name, value in variables.items())


def _json(variables: Variables) -> str:
    return json.dumps(variables, indent=2, ensure_ascii=False)


_RENDERERS: Mapping[str, Callable[[Variables], str]] = {"shell": _shell, "dotenv": _dotenv, "json": _json}
