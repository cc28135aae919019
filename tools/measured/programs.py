"""The programs of bench/ that `make bench` runs, each within about a minute, and what they told."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "build" / "bench"
PROGRAMS: dict[str, tuple[str, ...]] = {
    "nmi": ("--rounds=3", "--seconds=1"),
    "connections": (),
    "nmi_load": ("--seconds=20",),
    "memory": (),
    "imds_calls": (),
    "redirect": (),
    "pod_to_token": (),
    "new_identity": (),
    "mic": ("--only=plan,small",),
    "arm_calls": (),
    "start_up": (),
    "soak": ("--seconds=60",),
}
"""Programs by name, with the flags that keep them short. Without flags, each measures for longer."""
LONG: dict[str, tuple[str, ...]] = {
    "soak real": ("--kubernetes=real", "--seconds=1800"),
    "mic real": ("--only=real",),
    "mic real large": ("--only=real-large",),
}
"""Likewise, but run only when named, after `make cluster-ready`: the file is the name's first word."""
LIMIT_SECONDS = 600.0
LONG_LIMIT_SECONDS = 3600.0

Line = dict[str, Any]


def run(name: str) -> bool:
    """Run one program and keep its lines; say whether it ended well and everything is within its budget.

    `load` in a line is how many processes wanted a core, the minute before: what else the machine had to do.
    """
    began, load = time.monotonic(), round(os.getloadavg()[0], 1)
    file, limit = name.partition(" ")[0], LONG_LIMIT_SECONDS if name in LONG else LIMIT_SECONDS
    command = [sys.executable, str(ROOT / "bench" / f"{file}.py"), *(PROGRAMS | LONG)[name]]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=limit, check=False)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"bench"')]
    RESULTS.mkdir(parents=True, exist_ok=True)
    if lines:
        (RESULTS / f"{name}.json").write_text("".join(f"{json.dumps(line | {'load': load})}\n" for line in lines))
    told = "; ".join(str(line["over"] or "within its budget") for line in lines) or "told nothing"
    print(f"{name}: {told} ({time.monotonic() - began:.0f} s)", flush=True)
    return done.returncode == 0 and bool(lines)


def collected(before: Mapping[str, Line]) -> dict[str, Line]:
    """What programs told at their last run, by the name of the line; of a `LONG` one, what the page had `before`."""
    found = [json.loads(line) for path in sorted(RESULTS.glob("*.json")) for line in path.read_text().splitlines()]
    return {name: before[name] for name in LONG if name in before} | {str(line["bench"]): line for line in found}
