"""NMI's memory against the number of pods on the node, and whether it stays. `make bench` runs it.

20 identities; a process of its own for each number of pods, reached on plain loopback, under 32 connections, each head
unique.
"""

import argparse
from typing import Any

from results import print_result
from system.load.crowd import crowded, node_target

IDENTITIES = 20
PODS = (1, 50, 100, 250, 500, 900)
FULL = 250
BUDGET = {"rss_mib_at_250_pods": 52.0, "growth_mib": 4.0}
"""The largest values that are within the budget of docs/performance.md; allocators breathe."""


def main() -> int:
    """Measure and print; exit status 1 when something is over its budget."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="how long a full node is kept under load")
    seconds = parser.parse_args().seconds
    figures: dict[str, Any] = {str(pods): resident(pods, seconds if pods == FULL else 1.0) for pods in PODS}
    full = figures[str(FULL)]
    growth = full["rss_mib"] - full["rss_mib_warm"]
    return print_result(
        "memory", figures, BUDGET, {"rss_mib_at_250_pods": full["rss_mib"], "growth_mib": round(growth, 1)}
    )


def resident(pods: int, seconds: float) -> dict[str, float]:
    """Memory with so many pods: idle, after a second of load, and at the end."""
    with crowded() as crowd:
        sources = crowd.fill(pods, IDENTITIES, on_loopback=True)
        crowd.start("--redirect=none")
        figures = {"rss_mib_idle": round(crowd.resident_mib(), 1)}
        for name, so_long in (("rss_mib_warm", 1.0), ("rss_mib", seconds)):
            load = crowd.load(sources, "-connections=32", "-unique", f"-seconds={so_long}", target=node_target())
            if load["statuses"] != {"200": load["requests"]}:
                raise SystemExit(f"not every request had its answer: {load}")
            figures |= {name: round(crowd.resident_mib(), 1), "requests": load["requests"]}
        return figures


if __name__ == "__main__":
    raise SystemExit(main())
