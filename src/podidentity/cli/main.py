"""The `podidentity` command: sends each word to its command, and turns errors into one sentence and an exit status.

The daemons keep upstream's Go-style flags and parse their own arguments (`daemon`); the rest is in `commands`.
"""

import errno
import importlib
import os
import signal
import sys
from collections.abc import Sequence

from podidentity.errors import PodIdentityError, UsageError
from podidentity.serving.nesting import allow_nested_objects
from podidentity.supervisor import is_started, supervise

DAEMONS = {name: f"podidentity.cli.{name}" for name in ("broker", "mic", "nmi", "webhook")}
"""The daemons' modules, each with a `DaemonCommand` named COMMAND; imported only when one is asked for."""
INTERRUPTED_STATUS = 130
"""What a shell reports for a program that Ctrl-C ended."""
TERMINATED_STATUS = 143
"""The same for SIGTERM."""

_OUTPUT_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EPIPE, errno.EIO, errno.EBADF})


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its status."""
    _open_missing_streams()
    words = list(sys.argv[1:] if arguments is None else arguments)
    if arguments is None and words[:1] != ["supervise"]:
        allow_nested_objects()
    if arguments is None and words and words[0] in DAEMONS:
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
        first = _first_own_error(group)
        if first is None:
            raise
        print(f"error: {first}", file=sys.stderr)
        sys.exit(first.exit_status)
    except OSError as error:
        sys.exit(_tell_lost_output(error))


def _open_missing_streams() -> None:
    """Open /dev/null in place of a standard stream that is closed (`>&-`), or a file opened later would take its place.

    Python then has None for the stream.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is not None:
            continue
        null_device = os.open(os.devnull, os.O_RDWR)
        if null_device != descriptor:
            os.dup2(null_device, descriptor)
            os.close(null_device)
        setattr(sys, name, os.fdopen(descriptor, "r" if descriptor == 0 else "w"))


def _first_own_error(group: BaseExceptionGroup[BaseException]) -> PodIdentityError | None:
    """Return the first of several errors; None when one is not a `PodIdentityError`: a bug keeps its traceback."""
    handled, foreign = group.split(PodIdentityError)
    if handled is None or foreign is not None:
        return None
    first: BaseException = handled
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return first if isinstance(first, PodIdentityError) else None


def _tell_lost_output(error: OSError) -> int:
    """Report output that could not be written (a full disk, a closed pipe), or a directory that is gone.

    Return the status. Raises anything else.
    """
    if error.errno == errno.ENOENT and error.filename is None:  # what getcwd() says
        print("error: the current directory is gone; change to one that exists", file=sys.stderr)
        return 1
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
    if words and words[0] in DAEMONS:
        status: int = importlib.import_module(DAEMONS[words[0]]).COMMAND.run(words[1:])
        return status
    if words[:1] == ["supervise"]:
        if not words[1:]:
            raise UsageError("supervise: no program is named; write for example `podidentity supervise nmi`")
        return supervise(words[1:])
    if words == ["started"]:
        return 0 if is_started() else 1
    from podidentity.cli import commands  # noqa: PLC0415  # a daemon starts without click

    return commands.run(words)
