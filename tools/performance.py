"""Runs the programs of bench/ and writes docs/performance.md with its plots. Called by `make bench`.

`run [NAME...]` measures (all, or some: what others told before is kept), `page` writes the page and the plots from what
was told, `check` only compares the page with docs/performance/figures.json. `--note TEXT` says something about the run.
"""

import argparse
import datetime as dt
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

from measured import page, programs

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "performance.md"
FOLDER = ROOT / "docs" / "performance"
FIGURES = FOLDER / "figures.json"


def main() -> int:
    """Do what is asked; exit status 1 when something is over its budget, or the page is out of step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=["run", "page", "check"])
    parser.add_argument("names", nargs="*", help="programs")
    parser.add_argument("--note", default="", help="a sentence for the page")
    chosen = parser.parse_args()
    if chosen.command == "check":
        return 0 if in_step() else 1
    if chosen.command == "run":
        failed = [name for name in chosen.names or programs.PROGRAMS if not programs.run(name)]
        return 1 if failed else 0
    write(chosen.note)
    return 0


def in_step() -> bool:
    """Say whether the page is what its generator writes from its figures."""
    same = PAGE.read_text() == page.render(json.loads(FIGURES.read_text()))
    if not same:
        print("docs/performance.md is not what tools/performance.py writes from docs/performance/figures.json")
    return same


def write(note: str) -> None:
    """Write figures, page and plots."""
    from measured import plots  # noqa: PLC0415  # matplotlib: only here

    figures: dict[str, Any] = {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "machine": machine(),
        "note": note,
        "lines": programs.collected(json.loads(FIGURES.read_text())["lines"]),
    }
    FOLDER.mkdir(exist_ok=True)
    FIGURES.write_text(json.dumps(figures, indent=1, sort_keys=True) + "\n")
    PAGE.write_text(page.render(figures))
    for path in plots.draw(figures["lines"], FOLDER):
        print(f"wrote {path.relative_to(ROOT)}")


def machine() -> str:
    """Describe this machine without naming it."""
    models = [
        line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    memory = int(Path("/proc/meminfo").read_text().split()[1]) / 2**20
    cores = len(os.sched_getaffinity(0))
    return (
        f"{cores} cores of {models[0] if models else platform.machine()}, {memory:.0f} GiB, "
        f"Linux {platform.release().split('-')[0]}, Python {platform.python_version()}"
    )


if __name__ == "__main__":
    sys.exit(main())
