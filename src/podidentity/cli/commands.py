"""Every command but the daemons, by click: which there are, and what click says of a wrong word. Called by `main`."""

import sys
from collections.abc import Mapping, Sequence
from typing import ClassVar

import click

from podidentity import __version__
from podidentity.errors import HostError


def run(words: Sequence[str]) -> int:
    """Run one command; its exit status. Raises PodIdentityError and KeyboardInterrupt."""
    try:
        result = cli.main(list(words), prog_name="podidentity", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        return error.exit_code
    except click.ClickException as error:
        print(f"error: {error.format_message()}", file=sys.stderr)
        return error.exit_code
    except click.Abort:  # what click makes of Ctrl-C
        raise KeyboardInterrupt from None
    return result if isinstance(result, int) else 0


def _lab() -> click.Command:
    try:
        from podidentity.cli.lab import lab  # noqa: PLC0415  # needs the extra `lab`
    except ModuleNotFoundError as error:
        told = f"the lab needs the package {error.name}, which is not installed: pip install 'podidentity[lab]'"
        raise HostError(told) from None
    found: click.Command = lab
    return found


class _Commands(click.Group):
    """Commands that are imported when they are used; their lines in `--help` stand here."""

    summaries: ClassVar[Mapping[str, str]] = {
        "doctor": "Check an installation: roles, definitions, daemons, identities.",
        "explain": "What a pod would get when it asks for a token, and why.",
        "lab": "An Azure and a Kubernetes on this machine, to try everything in.",
        "mic": "The managed identity controller (a Deployment runs it).",
        "nmi": "The node managed identity daemon (a DaemonSet runs it).",
        "rollout": "Wait until a DaemonSet is ready on every node.",
    }

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's signature
        return sorted(self.summaries)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002  # likewise
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(sorted(self.summaries.items()))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  # click's signature
        if cmd_name == "lab":
            return _lab()
        if cmd_name == "explain":
            from podidentity.cli.explain import explain  # noqa: PLC0415  # the Kubernetes client: slow to load for --help

            return explain
        if cmd_name == "doctor":
            from podidentity.cli.doctor import doctor  # noqa: PLC0415  # likewise

            return doctor
        if cmd_name == "rollout":
            from podidentity.cli.rollout import rollout  # noqa: PLC0415  # likewise

            return rollout
        if cmd_name in self.summaries:  # their own parsers answer; this is for the list in --help
            return click.Command(cmd_name, short_help=self.summaries[cmd_name])
        return None


@click.group(cls=_Commands)
@click.version_option(__version__, prog_name="podidentity")
def cli() -> None:
    """Azure managed identities for Kubernetes pods, without a secret in sight.

    Try it without an Azure account: podidentity lab up
    """
