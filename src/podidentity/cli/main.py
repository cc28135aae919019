"""The `podidentity` command: sends each word to its command, and turns errors into one sentence and an exit status.

`nmi` and `mic` keep upstream's Go-style flags and therefore parse their own arguments; the rest is in `commands`.
"""

import errno
import os
import signal
import sys
from collections.abc import Callable, Sequence

from podidentity.errors import PodIdentityError

INTERRUPTED_STATUS = 130
"""What a shell reports for a program that Ctrl-C ended."""
TERMINATED_STATUS = 143
"""The same for SIGTERM."""

_OUTPUT_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EPIPE, errno.EIO, errno.EBADF})


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if arguments is None and words[:1] in (["mic"], ["nmi"]):
        # The kernel keeps from a container's first process every signal that it has no handler for: a MIC told to stop
        # while it starts would go on, be elected, and be killed holding the lock. The daemon replaces this.
        signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(TERMINATED_STATUS))
    try:
        status = _run(words)
        sys.stdout.flush()
        sys.exit(status)
    except PodIdentityError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
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
    from podidentity.cli import commands  # noqa: PLC0415  # a daemon starts without click

    return commands.run(words)


def _daemon(word: str) -> Callable[[Sequence[str]], int] | None:
    """Import a daemon only when it is asked for: each has its own weight."""
    if word == "nmi":
        from podidentity.cli.nmi import run  # noqa: PLC0415  # see above

        return run
    if word == "mic":
        from podidentity.cli.mic import run  # noqa: PLC0415  # see above

        return run
    return None
