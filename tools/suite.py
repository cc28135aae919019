"""Runs all tests in two lanes at the same time: those on the real cluster, which mostly wait, and all others.

The others are told as they run; what the lane of the cluster says goes to build/cluster-tests.txt, and is told at the
end. The exit status is 0 when both were good. With one core the lanes run one after the other. Meanwhile the clients of
the interop tests are installed: a test would wait for that otherwise. Called by `make test`.
"""

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parent.parent
TOLD = ROOT / "build" / "cluster-tests.txt"
FOLDERS = ("tests/cluster", "tests/contract")
PYTEST = (sys.executable, "-m", "pytest", "-q")
# The cluster goes first: its tests tell whether a request is refused while NMI is replaced, and the kubelets' probes,
# leases and time limits are those of a machine that has time for them.
OTHERS = ("nice", "-n", "5", *PYTEST, *(f"--ignore={folder}" for folder in FOLDERS))
# What these tests need is made in their own lane: while a cache is empty, that takes minutes.
ON_THE_CLUSTER = (
    *("/bin/sh", "-c"),
    f"tools/cluster-ready && exec {shlex.join((*PYTEST, '-o', 'cache_dir=build/cluster-tests-cache', *FOLDERS))}",
)
CLIENTS = ("nice", sys.executable, "tests/interop/clients.py")
_SUMMARY = re.compile(r"^=*\s*(\d+ .+ in .+?)\s*=*$")


def main() -> int:
    """Run the lanes; 1 when something failed in either."""
    TOLD.parent.mkdir(exist_ok=True)
    began = time.monotonic()
    with TOLD.open("w") as told, started(ON_THE_CLUSTER, told) as cluster:
        alone = cores() == 1
        print(f"{'first' if alone else 'at the same time'}, on the real cluster: {TOLD.relative_to(ROOT)}", flush=True)
        if alone:
            cluster.wait()
        with started(CLIENTS, subprocess.DEVNULL), started(OTHERS, None) as others:
            others.wait()
        if cluster.poll() is None:
            print("waiting for the tests on the real cluster", flush=True)
        cluster.wait()
    said = TOLD.read_text()
    print(f"\non the real cluster:\n{said}")
    print(f"on the real cluster: {summary(said)}. All tests took {(time.monotonic() - began) / 60:.1f} minutes.")
    return int(others.returncode != 0 or cluster.returncode != 0)


@contextlib.contextmanager
def started(command: tuple[str, ...], output: IO[str] | int | None) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command beside us; it ends with us, in order, whatever ends us."""
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait()


def cores() -> int:
    """How many there are for us."""
    return len(os.sched_getaffinity(0))


def summary(said: str) -> str:
    """What pytest said last."""
    found = [match[1] for line in said.splitlines() if (match := _SUMMARY.match(line))]
    return found[-1] if found else "the tests did not come to an end"


if __name__ == "__main__":
    signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C goes to the lanes too: they end in order, and we tell
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(main())
