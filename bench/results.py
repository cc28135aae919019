"""What each program here ends with: one JSON line, the same for all, and the exit status that goes with it.

A budget has to hold on any machine at any hour: what is a time is a ratio to a reference that the same run measured, in
pairs, and the median of the ratios counts. Absolute times are information.
"""

import gc
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Value = float | Mapping[str, float]
"""What was measured: a number, or the spread of several."""
LOOP_ITEMS = 20_000
"""Of the loop in pure Python that MIC's CPU is compared with; some 10 ms."""


def print_result(
    bench: str, figures: Mapping[str, Any], budget: Mapping[str, float], values: Mapping[str, Value]
) -> int:
    """Print the line; return 1 when one of `values`, or its median, is over its largest value in `budget`.

    `figures` is everything that was measured, in any form; `values` what the budget is about, by the same names.
    """
    numbers = {name: value if isinstance(value, int | float) else value["median"] for name, value in values.items()}
    excess = [f"{name}: {numbers[name]:g} > {limit:g}" for name, limit in budget.items() if numbers[name] > limit]
    line = {"bench": bench, "figures": figures, "measured": values, "budget": budget, "over": excess}
    print(json.dumps(line | {"within_budget": not excess}), flush=True)
    return 1 if excess else 0


def spread(values: Sequence[float], digits: int = 3) -> dict[str, float]:
    """Return the median, the smallest and the largest value."""
    figures = {"median": statistics.median(values), "least": min(values), "most": max(values)}
    return {name: round(value, digits) for name, value in figures.items()}


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that at least `percent` percent of all do not exceed."""
    ordered = sorted(values)
    return ordered[max(math.ceil(len(ordered) * percent / 100) - 1, 0)]


def ratios(subject: Callable[[], float], reference: Callable[[], float], rounds: int) -> dict[str, float]:
    """Measure both in turn and return the spread of the ratios: what slows the machine down slows down both."""
    return spread([subject() / reference() for _ in range(rounds)])


def loop_seconds() -> float:
    """Return the CPU that a fixed loop in pure Python takes: objects made, looked up and sorted, as a plan does."""
    gc.disable()  # how many objects the program around it has must not matter
    start = time.process_time()
    entries = {(f"namespace-{number % 100}", f"pod-{number}"): [number] for number in range(LOOP_ITEMS)}
    for name in sorted(entries, reverse=True):
        entries[name].append(len(name[1]))
    seconds = time.process_time() - start
    gc.enable()
    return seconds


def start_seconds() -> float:
    """Return how long a Python takes that imports `asyncio` and `ssl`: the machine's pace now, with all its load."""
    start = time.monotonic()
    subprocess.run([sys.executable, "-c", "import asyncio, ssl"], check=True, timeout=60)
    return time.monotonic() - start
