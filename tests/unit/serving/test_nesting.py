"""How deeply an object may be nested that our processes can read."""

import subprocess
import sys
from pathlib import Path

import pytest

from podidentity.serving import nesting

OWN_LIMIT_OF_C = sys.version_info >= (3, 12)
"""Whether the interpreter counts C code's calls against a limit of its own: 1,500 first, 10,000 later."""
LEVELS = 1_000 if OWN_LIMIT_OF_C else nesting.NESTING_LEVELS

_DECODE = f"""
import json, sys, threading, msgspec
from podidentity.cli import main
try:
    main.main()
except SystemExit:
    pass
text = b'{{"a":' * {LEVELS} + b"1" + b"}}" * {LEVELS}
def work():
    whole = msgspec.json.decode(text)
    assert whole == msgspec.json.decode(text)
    assert json.loads(text) == whole
    assert msgspec.json.encode(whole) == text
work()
thread = threading.Thread(target=work)
thread.start()
thread.join()
print("done", sys.getrecursionlimit())
"""


def _run(*prefix: str) -> subprocess.CompletedProcess[str]:
    command = (*prefix, sys.executable, "-c", _DECODE, "nmi", "--version")
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path.cwd())


def test_each_command_reads_what_the_api_server_stores() -> None:
    """Each thread reads, compares and writes the deepest object, without RecursionError and with enough stack."""
    ended = _run()
    assert ended.stdout.splitlines()[-1] == f"done {nesting.RECURSION_LIMIT}", ended.stderr
    assert ended.stderr == ""


@pytest.mark.skipif(OWN_LIMIT_OF_C, reason="no program can lower the limit of C code there")
def test_without_stack_enough_the_limit_stays() -> None:
    """With a small stack Python's recursion limit stays.

    An error can be handled, whereas a stack overflow kills the process.
    """
    ended = _run("prlimit", "--stack=1048576:1048576")
    assert ended.returncode == 1
    assert "RecursionError" in ended.stderr
