"""Runs the programs of bench/ and writes docs/performance.md with its plots.

`run [NAME...]` measures all programs or some, each named as it is or as one of its lines in figures.json. `page` puts
what was measured in place of the former figures, keeps the rest, and writes the page and the plots. `check` only
compares the page with docs/performance/figures.json. `--note TEXT` adds a sentence to the page.
"""

import argparse
import datetime as dt
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

from measured import page, programs, rows

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "performance.md"
FOLDER = ROOT / "docs" / "performance"
FIGURES = FOLDER / "figures.json"


def main() -> int:
    """Carry out the command; return 1 when something is over its budget, or the page is out of step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=["run", "page", "check"])
    parser.add_argument("names", nargs="*", help="programs")
    parser.add_argument("--note", default="", help="a sentence for the page")
    options = parser.parse_args()
    if options.command == "check":
        return 0 if in_step() else 1
    if options.command == "run":
        names = options.names or programs.PROGRAMS
        failures = [name for name in dict.fromkeys(map(rows.run_name, names)) if not programs.run(name)]
        return 1 if failures else 0
    write(options.note)
    return 0


def in_step() -> bool:
    """Return whether the page is what its generator writes from its figures."""
    is_equal = PAGE.read_text() == page.render(json.loads(FIGURES.read_text()))
    if not is_equal:
        print("docs/performance.md is not what tools/performance.py writes from docs/performance/figures.json")
    return is_equal


def write(note: str) -> None:
    """Write figures, page and plots."""
    from measured import plots  # noqa: PLC0415  # matplotlib: only here

    former = json.loads(FIGURES.read_text())
    lines = {name: {"date": former["date"], **line} for name, line in former["lines"].items()}
    figures: dict[str, Any] = {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "machine": machine(),
        "note": note,
        "lines": programs.collect(lines),
    }
    FOLDER.mkdir(exist_ok=True)
    text = json.dumps(figures, indent=1, sort_keys=True) + "\n"
    FIGURES.write_text(text)
    PAGE.write_text(page.render(json.loads(text)))  # in the order of the file, as `check` reads it
    for path in plots.draw(figures["lines"], FOLDER):
        print(f"wrote {path.relative_to(ROOT)}")


def machine() -> str:
    """Return what kind of machine this is, without its name."""
    models = [
        line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    memory = int(Path("/proc/meminfo").read_text().split()[1]) / 2**20
    cores = len(os.sched_getaffinity(0))
    return (
        f"{cores} cores of {models[0] if models else platform.machine()}, {memory:.0f} GiB, "
        f"Linux {platform.release().split('-')[0]}"
    )


if __name__ == "__main__":
    sys.exit(main())
