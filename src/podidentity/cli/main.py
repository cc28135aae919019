"""The `podidentity` command: sends each word to its command, and turns errors into one sentence and an exit status.

`nmi` and `mic` keep upstream's Go-style flags and therefore parse their own arguments; the rest is click.
"""

import errno
import os
import sys
from collections.abc import Callable, Sequence

import click

from podidentity import __version__
from podidentity.errors import HostError, PodIdentityError

INTERRUPTED_STATUS = 130
"""What a shell reports for a program that Ctrl-C ended."""


_OUTPUT_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EPIPE, errno.EIO, errno.EBADF})


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        status = _run(words)
        sys.stdout.flush()
        sys.exit(status)
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        print(f"error: {error.format_message()}", file=sys.stderr)
        sys.exit(error.exit_code)
    except PodIdentityError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
    except (KeyboardInterrupt, click.Abort):  # click makes one of the other
        sys.exit(INTERRUPTED_STATUS)
    except BaseExceptionGroup as group:
        first = _first_of_ours(group)
        if first is None:
            raise
        print(f"error: {first}", file=sys.stderr)
        sys.exit(first.exit_status)
    except OSError as error:
        sys.exit(_tell_lost_output(error))


def _first_of_ours(group: BaseExceptionGroup[BaseException]) -> PodIdentityError | None:
    """What to tell of several errors at once; None when one of them is not ours: a bug keeps its traceback."""
    ours, others = group.split(PodIdentityError)
    if ours is None or others is not None:
        return None
    first: BaseException = ours
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return first if isinstance(first, PodIdentityError) else None


def _tell_lost_output(error: OSError) -> int:
    """Say that what was printed did not arrive (a full disk, a closed pipe); the exit status. Raises anything else."""
    if error.filename is not None or error.errno not in _OUTPUT_ERRORS:
        raise error
    # What is still buffered cannot be written either: Python must not try again when it ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if error.errno != errno.EPIPE:  # the reader of a pipe left because it had enough
        print(
            f"error: the output cannot be written: {error.strerror}; make room, or send it elsewhere", file=sys.stderr
        )
    return 1


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

    summaries = {  # noqa: RUF012  # never changed
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
            from podidentity.cli.explain import explain  # noqa: PLC0415  # needs the Kubernetes client

            return explain
        if cmd_name == "doctor":
            from podidentity.cli.doctor import doctor  # noqa: PLC0415  # likewise

            return doctor
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
