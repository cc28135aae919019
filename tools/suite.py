"""Runs all tests in three lanes at the same time: on the real cluster, with whole programs, and all others.

Tests of the first two lanes wait a good deal, so two cores have work for all three. The output of the others is printed
as it comes; that of each other lane goes to a file in build/ and is printed at the end. The exit status is 0 when all
lanes passed. With one core the lanes run one after the other. Meanwhile the clients of the interop tests are installed,
so that no test has to wait for them.
"""

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

ROOT = Path(__file__).parent.parent
OUTPUTS = ROOT / "build"
PYTEST = (sys.executable, "-m", "pytest", "-q", "--durations=20")
CLUSTER_FOLDERS = ("tests/cluster", "tests/contract")
PROGRAM_FOLDERS = (
    "tests/system/demo",
    "tests/system/lab",
    "tests/interop",
)
"""Not all of whole programs: images, the release, the lab's page, load and the redirect are with the others, so that
all lanes take about as long."""
CLIENTS = ("nice", sys.executable, "tests/interop/clients.py")
_SUMMARY = re.compile(r"^=*\s*(\d+ .+ in .+?)\s*=*$")


class Lane(NamedTuple):
    """Tests that run one after the other."""

    name: str
    command: tuple[str, ...]
    file: str = ""
    """Where its output goes, in build/; empty: it is printed as it comes."""


# The cluster has priority: its tests check that no request is refused while NMI is replaced, and the time limits of
# probes and leases suit a machine that has time for them. What these tests need is made in their own lane: while a
# cache is empty, that takes minutes.
ON_THE_CLUSTER = shlex.join((*PYTEST, "-o", "cache_dir=build/cluster-tests-cache", *CLUSTER_FOLDERS))
LANES = (
    Lane(
        "on the real cluster", ("/bin/sh", "-c", f"tools/cluster-ready && exec {ON_THE_CLUSTER}"), "cluster-tests.txt"
    ),
    Lane(
        "with whole programs",
        ("nice", "-n", "5", *PYTEST, "-o", "cache_dir=build/program-tests-cache", *PROGRAM_FOLDERS),
        "program-tests.txt",
    ),
    Lane(
        "all others",
        ("nice", "-n", "5", *PYTEST, *(f"--ignore={folder}" for folder in (*CLUSTER_FOLDERS, *PROGRAM_FOLDERS))),
    ),
)


def main() -> int:
    """Run the lanes; return 1 when a test failed in any."""
    OUTPUTS.mkdir(exist_ok=True)
    start = time.monotonic()
    with run_beside(CLIENTS, subprocess.DEVNULL):
        failures = run_in_turn(LANES) if cores() == 1 else run_together(LANES)
    for lane in LANES:
        if lane.file:
            print(f"\n{lane.name}:\n{(OUTPUTS / lane.file).read_text()}")
    for lane in LANES:
        if lane.file:
            print(f"{lane.name}: {summary((OUTPUTS / lane.file).read_text())}")
    print(f"All tests took {(time.monotonic() - start) / 60:.1f} minutes.")
    return int(failures > 0)


def run_in_turn(lanes: Sequence[Lane]) -> int:
    """Run one lane after the other; return how many failed."""
    return sum(run_together([lane]) for lane in lanes)


def run_together(lanes: Sequence[Lane]) -> int:
    """Run lanes at the same time; return how many failed."""
    with contextlib.ExitStack() as stack:
        processes = {lane: stack.enter_context(_run(lane)) for lane in lanes}
        for lane in sorted(lanes, key=lambda lane: bool(lane.file)):  # what is printed first, then what is waited for
            if processes[lane].poll() is None and lane.file:
                print(f"waiting for the tests {lane.name}", flush=True)
            processes[lane].wait()
        return sum(process.returncode != 0 for process in processes.values())


@contextlib.contextmanager
def _run(lane: Lane) -> Iterator[subprocess.Popen[bytes]]:
    with contextlib.ExitStack() as stack:
        output = stack.enter_context((OUTPUTS / lane.file).open("w")) if lane.file else None
        if lane.file:
            print(f"{lane.name}: {OUTPUTS.name}/{lane.file}", flush=True)
        yield stack.enter_context(run_beside(lane.command, output))


@contextlib.contextmanager
def run_beside(command: tuple[str, ...], output: IO[str] | int | None) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command while the block runs; it is terminated and waited for however the block ends."""
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait()


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def summary(text: str) -> str:
    """Return the last summary line of pytest's output."""
    summaries = [match[1] for line in text.splitlines() if (match := _SUMMARY.match(line))]
    return summaries[-1] if summaries else "the tests did not come to an end"


if __name__ == "__main__":
    signal.signal(
        signal.SIGINT, lambda *_: None
    )  # Ctrl-C reaches the lanes too: they end in order, and the summary follows
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(main())
