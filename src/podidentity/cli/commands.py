"""Every command but the daemons, by click: which there are, and what click says of a wrong word."""

import importlib
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import ClassVar

import click

from podidentity import __version__
from podidentity.errors import HostError

PLUGINS = "podidentity.commands"
"""The entry points under which other distributions bring commands of `podidentity`."""

_MODULES = {
    "completion": "podidentity.cli.completion",
    "credential": "podidentity.cli.credential",
    "doctor": "podidentity.cli.doctor",
    "explain": "podidentity.cli.explain",
    "issuer": "podidentity.cli.issuer",
    "jwks": "podidentity.cli.issuer",
    "migrate": "podidentity.cli.migrate",
    "rollout": "podidentity.cli.rollout",
    "serviceaccount": "podidentity.cli.serviceaccount",
    "verify": "podidentity.cli.verify",
}
"""Where each command is defined, as a click command of its name."""
_FOR_PROGRAMS = frozenset({"completion", "rollout"})
"""Commands that `--help` leaves out, so that it fits a screen: scripts call them."""


def run(words: Sequence[str]) -> int:
    """Run one command; its exit status. Raises PodIdentityError and KeyboardInterrupt."""
    try:
        result = cli.main(list(words), prog_name=_program(), standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        return error.exit_code
    except click.ClickException as error:
        print(f"error: {_sentence(error)}", file=sys.stderr)
        return error.exit_code
    except click.Abort:  # what click makes of Ctrl-C
        raise KeyboardInterrupt from None
    return result if isinstance(result, int) else 0


def _sentence(error: click.ClickException) -> str:
    """Return what click says of a wrong word as one line, in the form of all errors: what is wrong; what to do."""
    text = " ".join(error.format_message().split()).rstrip(".")
    context = getattr(error, "ctx", None)
    return f"{text[:1].lower()}{text[1:]}; see `{context.command_path if context else _program()} --help`"


def _program() -> str:
    """Return the name that help shows: that of kubectl's plugin, where kubectl called it."""
    return "kubectl podidentity" if Path(sys.argv[0]).name == "kubectl-podidentity" else "podidentity"


def _lab() -> click.Command:
    """Return the commands of the distribution podidentity-lab. Raises `HostError` when it is not installed."""
    for entry_point in entry_points(group=PLUGINS, name="lab"):
        command: click.Command = entry_point.load()
        return command
    raise HostError("the lab is a package of its own; pip install podidentity-lab")


class _Commands(click.Group):
    """Commands that are imported when they are used; their lines in `--help` stand here."""

    summaries: ClassVar[Mapping[str, str]] = {
        "broker": "The token proxy for workload identity (a Deployment).",
        "completion": "Print what makes a shell complete these commands.",
        "credential": "Federated credentials: create, list, delete.",
        "doctor": "Check an installation: roles, daemons, identities, issuer.",
        "explain": "What a pod would get when it asks for a token, and why.",
        "issuer": "What Entra ID must find at the cluster's issuer.",
        "jwks": "The key set of public keys, as Entra ID reads it.",
        "lab": "An Azure and a Kubernetes on this machine, to try it all.",
        "mic": "The managed identity controller (a Deployment).",
        "migrate": "Write the manifests of another way of getting tokens.",
        "nmi": "The node managed identity daemon (a DaemonSet).",
        "rollout": "Wait until a DaemonSet is ready on every node.",
        "serviceaccount": "Workload identity for one service account, as azwi does.",
        "verify": "Check the whole on your cluster and your Azure subscription.",
        "webhook": "The admission webhook for workload identity (a Deployment).",
    }

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's signature
        return sorted(self.summaries)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002  # likewise
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(sorted(item for item in self.summaries.items() if item[0] not in _FOR_PROGRAMS))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  # click's signature
        if cmd_name == "lab":
            return _lab()
        if cmd_name in _MODULES:  # imported only for who asks for it: the Kubernetes client is slow to load for --help
            command: click.Command = getattr(importlib.import_module(_MODULES[cmd_name]), cmd_name)
            return command
        if cmd_name in self.summaries:  # their own parsers answer; this is for the list in --help
            return click.Command(cmd_name, short_help=self.summaries[cmd_name])
        return None


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="podidentity")
def cli() -> None:
    """Azure managed identities for Kubernetes pods, without a secret in sight.

    Try it without an Azure account: podidentity lab up
    """
