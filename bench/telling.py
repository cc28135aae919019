"""What each program here ends with: one JSON line, the same for all, and the exit status that goes with it."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any


def tell(bench: str, figures: Mapping[str, Any], budget: Mapping[str, float], measured: Mapping[str, float]) -> int:
    """Print the line; 1 when one of `measured` is over its largest value in `budget`.

    `figures` is everything that was measured, in any form; `measured` what the budget is about, by the same names.
    """
    over = [f"{name}: {measured[name]:g} > {most:g}" for name, most in budget.items() if measured[name] > most]
    line = {"bench": bench, "figures": figures, "measured": measured, "budget": budget, "over": over}
    print(json.dumps(line | {"within_budget": not over}), flush=True)
    return 1 if over else 0


def spread(values: Sequence[float], digits: int = 3) -> dict[str, float]:
    """Median, smallest and largest."""
    told = {"median": statistics.median(values), "least": min(values), "most": max(values)}
    return {name: round(value, digits) for name, value in told.items()}


def percentile(values: Sequence[float], of: float) -> float:
    """The smallest value that at least `of` percent of all do not exceed."""
    ordered = sorted(values)
    return ordered[max(math.ceil(len(ordered) * of / 100) - 1, 0)]
