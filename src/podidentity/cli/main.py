"""The `podidentity` command: sends each word to its command, and turns errors into one sentence and an exit status.

`nmi` and `mic` keep upstream's Go-style flags and therefore parse their own arguments; the rest is click.
"""

import sys
from collections.abc import Callable, Sequence

import click

from podidentity import __version__
from podidentity.errors import PodIdentityError

INTERRUPTED_STATUS = 130
"""What a shell reports for a program that Ctrl-C ended."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        sys.exit(_run(words))
    except click.ClickException as error:
        print(f"error: {error.format_message()}", file=sys.stderr)
        sys.exit(error.exit_code)
    except PodIdentityError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
    except (KeyboardInterrupt, click.Abort):  # click makes one of the other
        sys.exit(INTERRUPTED_STATUS)


def _run(words: list[str]) -> int:
    daemon = _daemon(words[0]) if words else None
    if daemon is not None:
        return daemon(words[1:])
    result = cli.main(words, prog_name="podidentity", standalone_mode=False)
    return result if isinstance(result, int) else 0


def _daemon(word: str) -> Callable[[Sequence[str]], int] | None:
    """Import a daemon only when it is asked for: each has its own weight."""
    if word == "nmi":
        from podidentity.cli.nmi import run  # noqa: PLC0415  # see above

        return run
    if word == "mic":
        from podidentity.cli.mic import run  # noqa: PLC0415  # see above

        return run
    return None


class _Commands(click.Group):
    """Commands that are imported when they are used; their lines in `--help` stand here."""

    summaries = {  # noqa: RUF012  # never changed
        "lab": "An Azure and a Kubernetes on this machine, to try everything in.",
        "mic": "The managed identity controller (a Deployment runs it).",
        "nmi": "The node managed identity daemon (a DaemonSet runs it).",
        "rollout": "Wait until a DaemonSet is ready on every node.",
    }

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's signature
        return sorted(self.summaries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  # click's signature
        if cmd_name == "lab":
            from podidentity.cli.lab import lab  # noqa: PLC0415  # needs the extra `lab`

            found: click.Command = lab
            return found
        if cmd_name == "rollout":
            from podidentity.cli.rollout import rollout  # noqa: PLC0415  # needs the Kubernetes client

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
