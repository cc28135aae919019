"""`podidentity lab shell` and `lab run`: a user's shell, or one command, in a lab; as an identity, if one is named."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence

import click

from podidentity.errors import UsageError
from podidentity_lab import directory, environment, key_file, up
from podidentity_lab.directory import Directory
from podidentity_lab.environment import Dialect, Identity
from podidentity_lab.settings import LabSettings

_TRY = """\
You are in the lab {name!r}: kubectl, curl, az and every client that honours HTTPS_PROXY work in it as they are. Try:

  kubectl get nodes
  kubectl create -f deploy/infra/deployment-rbac.yaml
  kubectl get pods -o wide
  curl https://management.azure.com/subscriptions     # the lab's Azure; it refuses, politely
  podidentity lab log --name {name}                   # who asked Azure for what
  podidentity lab status --name {name}

What containers write: {logs}. {end}"""
_ENDS = "`exit` ends the lab."
_STAYS = "`exit` leaves it; the lab stays."


def run(settings: LabSettings, identity: str | None, dialect: Dialect) -> int:
    """Run the user's shell in a lab; return its exit status if it ran a script, else 0.

    A lab that is up already is used and stays; else one is started and ends with the shell.
    """
    lab = next((lab for lab in directory.all_labs() if lab.name == settings.name and lab.facts()), None)
    if lab is not None:
        return _shell(lab, identity, dialect, _STAYS)
    click.echo(f"starting the lab {settings.name!r} ...", err=True)
    with up.running(settings, lambda text: click.echo(text, err=True)) as fresh_lab:
        status = _shell(fresh_lab.directory, identity, dialect, _ENDS)
    click.echo(f"the lab {settings.name!r} is down", err=True)
    return status


def execute(lab: Directory, identity: str | None, dialect: Dialect, command: Sequence[str]) -> None:
    """Become `command` in a lab, as an identity. Raises `LabError`, `HostError`, `UsageError` (no such program)."""
    variables = _environment(lab, identity, dialect)
    try:
        os.execvpe(command[0], list(command), variables)  # noqa: S606  # the user's own command: no shell of ours reads it
    except OSError as error:
        raise UsageError(f"{command[0]}: {error.strerror}; name a program that can be started") from None


def _shell(lab: Directory, identity: str | None, dialect: Dialect, end: str) -> int:
    logs = environment.variables(lab)["LAB_LOGS"]
    click.echo(_TRY.format(name=lab.name, logs=logs, end=end), err=True)
    command = [sys.executable, "-m", "podidentity", "lab", "run", "--name", lab.name]
    command += [] if identity is None else ["--identity", identity, "--dialect", dialect]
    # A process of its own: the mounts of `arc` are for the shell alone, and we end the lab afterwards.
    status = subprocess.run([*command, "--", shell()], check=False).returncode
    # The status of the last command typed at a terminal says nothing about the lab; `make lab` would report an error.
    return 0 if sys.stdin.isatty() else status


def shell() -> str:
    """Return the path of the user's shell."""
    return os.environ.get("SHELL") or "/bin/sh"


def _environment(lab: Directory, name: str | None, dialect: Dialect) -> dict[str, str]:
    """Return the user's environment with the lab's variables; `arc` also changes what this process sees of /var/opt."""
    changes: Mapping[str, str | None] = environment.variables(lab)
    if name is not None:
        identity: Identity = environment.identity(lab, name)
        changes = environment.identity_variables(lab, identity, dialect)
        if dialect == "arc":
            key_file.show(identity.secret)
    return {**environment.merge(os.environ, changes, lab), "PATH": environment.path()}
