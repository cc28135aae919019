"""`podidentity lab shell`: a lab of its own and a shell in it; when the shell ends, so does the lab."""

import os
import subprocess
import sys
from pathlib import Path

import click

from podidentity.lab import up
from podidentity.lab.directory import Directory
from podidentity.lab.environment import variables
from podidentity.lab.settings import LabSettings

_TRY = """\
You are in the lab {name!r}: kubectl, curl, az and every client that honours HTTPS_PROXY work in it as they are. Try:

  kubectl get nodes
  kubectl create -f deploy/infra/deployment-rbac.yaml
  kubectl get pods -o wide
  curl https://management.azure.com/subscriptions     # the lab's Azure; it refuses, politely
  podidentity lab log --name {name}                   # who asked Azure for what
  podidentity lab status --name {name}

What containers write: {logs}. `exit` ends the lab."""


def run(settings: LabSettings) -> int:
    """Start a lab, run the user's shell in it, take the lab down; the exit status of a shell that read a script."""
    click.echo(f"starting the lab {settings.name!r} ...", err=True)
    with up.running(settings, lambda text: click.echo(text, err=True)) as lab:
        told = variables(lab.directory)
        click.echo(_TRY.format(name=lab.directory.name, logs=told["LAB_LOGS"]), err=True)
        status = subprocess.run([shell()], env=environment(lab.directory), check=False).returncode
    click.echo(f"the lab {settings.name!r} is down", err=True)
    # What somebody typed last at a terminal says nothing of the lab, and `make lab` would call it an error.
    return 0 if sys.stdin.isatty() else status


def shell() -> str:
    """The user's shell."""
    return os.environ.get("SHELL") or "/bin/sh"


def environment(lab: Directory) -> dict[str, str]:
    """The user's own environment, the lab's on top; kubectl and `podidentity` are found where this Python is."""
    path = f"{os.environ.get('PATH', os.defpath)}:{Path(sys.executable).parent}"
    return {**os.environ, **variables(lab), "PATH": path}
