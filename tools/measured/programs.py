"""The programs of bench/ that `make bench` runs, most within a minute or two, and what they print."""

import datetime as dt
import functools
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pythons

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "build" / "bench"
PROGRAMS: dict[str, tuple[str, ...]] = {
    "nmi": ("--rounds=7", "--seconds=0.5"),
    "connections": (),
    "nmi_load": ("--seconds=20",),
    "memory": (),
    "imds_calls": (),
    "redirect": (),
    "pod_to_token": (),
    "new_identity": (),
    "mic": ("--only=plan,small",),
    "arm_calls": (),
    "broker": ("--rounds=5", "--seconds=1"),
    "webhook": ("--rounds=5", "--pods=100"),
    "start_up": (),
    "soak": ("--seconds=60",),
    "neighbour": (),
    "lab": ("--rounds=3", "--requests=200"),
}
"""Programs by name, with the flags that keep them short. Without flags, each measures for longer."""
LONG: dict[str, tuple[str, ...]] = {
    "soak real": ("--kubernetes=real", "--seconds=1800"),
    "mic real": ("--only=real",),
    "mic real large": ("--only=real-large",),
    "mic limit": ("--only=limit",),
    "fleet": (),
}
"""Likewise, but run only when named, after `make cluster-ready`: the file is the name's first word."""
LIMIT_SECONDS = 600.0
LIMITS = {"lab": 2400.0, "neighbour": 1800.0}
"""The lab's first installs what it compares with, and package managers take their time on a busy machine; the neighbour
attacks for two minutes, three times."""
LONG_LIMIT_SECONDS = 3600.0

Line = dict[str, Any]


def run(name: str) -> bool:
    """Run one program and keep its lines; return whether it ended well and everything is within its budget.

    `load` in a line is the machine's load average when the program began: how many processes wanted a core.
    """
    python, version = images_python()
    today = dt.datetime.now(dt.UTC).date().isoformat()
    start, load = time.monotonic(), round(os.getloadavg()[0], 1)
    file = name.partition(" ")[0]
    limit = LONG_LIMIT_SECONDS if name in LONG else LIMITS.get(name, LIMIT_SECONDS)
    command = [str(python), str(ROOT / "bench" / f"{file}.py"), *(PROGRAMS | LONG)[name]]
    try:
        process = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        print(f"{name}: did not end within {limit:.0f} s; its former figures stay", flush=True)
        return False
    lines = [json.loads(line) for line in process.stdout.splitlines() if line.startswith('{"bench"')]
    RESULTS.mkdir(parents=True, exist_ok=True)
    if lines:
        moment = {"load": load, "date": today, "python": version}
        (RESULTS / f"{name}.json").write_text("".join(f"{json.dumps(line | moment)}\n" for line in lines))
    print(f"{name}: {'' if lines else 'printed nothing '}({time.monotonic() - start:.0f} s)", flush=True)
    for line in lines:
        print("".join(f"  {verdict}\n" for verdict in verdicts(line)), end="", flush=True)
    return process.returncode == 0 and bool(lines)


@functools.cache
def images_python() -> tuple[Path, str]:
    """Return the Python of the images, with the project in it, and its version; the running one where there is none.

    What the images run is to be measured. Debian builds its Python by profile; one that is compiled without that, as
    many a developer's is, takes longer for the same.
    """
    path = pythons.installed_pythons().get(pythons.IMAGES)
    if path is None:
        return Path(sys.executable), platform.python_version()
    return pythons.install(pythons.IMAGES, path), pythons.version_text(pythons.IMAGES)


def verdicts(line: Line) -> list[str]:
    """Return a sentence for each entry of a line's budget: what was measured, its spread, limit and verdict."""
    sentences = []
    values: Mapping[str, Any] = line.get("measured") or line["figures"]
    for name, limit in (line.get("budget") or {}).items():
        value = values[name]
        number = value if isinstance(value, int | float) else value["median"]
        spread = "" if isinstance(value, int | float) else f" ({value['least']:g} to {value['most']:g})"
        verdict = "over its budget" if number > limit else "within its budget"
        sentences.append(f"{name}: {number:g}{spread}, at most {limit:g}: {verdict}")
    return sentences or ["it has no budget"]


def collect(figures_before: Mapping[str, Line]) -> dict[str, Line]:
    """Return all lines by their names: what a program printed takes the place of its former line, the rest stay."""
    lines = [json.loads(line) for path in sorted(RESULTS.glob("*.json")) for line in path.read_text().splitlines()]
    return {**figures_before, **{str(line["bench"]): line for line in lines}}
