"""A node in bad weather for a long time: is any token wrong or lost, and do memory and open files stay? `make bench`.

500 token requests a second through the real redirect, from pods that come and go;
watches are cut, 5 % of IMDS's answers are errors. MIC is not part of it. `--seconds 1800` is the long one.
"""

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from system.load.soaking import Soak, Weather
from system.redirect.network import Network
from telling import percentile, tell

SHORT_SECONDS = 300.0
BUDGET = {"wrong": 0.0, "lost": 0.0, "leaked_packets": 0.0, "descriptors_growth": 8.0, "growth_mib": 4.0}
"""The largest values that are within the budget. `growth_mib`: the last sample over that at half time."""


def main() -> int:
    """Measure and print; exit status 1 when something is over its budget."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=SHORT_SECONDS, help="how long")
    parser.add_argument("--per-second", type=float, default=500.0, help="requests a second, all pods together")
    chosen = parser.parse_args()
    weather = Weather(chosen.seconds, chosen.per_second)
    with tempfile.TemporaryDirectory() as directory, Network("bridge") as network:
        with Soak(network, Path(directory), weather) as soak:
            seen = soak.live_through()
        leaked = network.leaked()
    for told in [*seen.wrong, *seen.lost][:20]:
        print(told, file=sys.stderr)
    resident = [mib for _, mib in seen.resident_mib]
    figures = {
        "seconds": chosen.seconds,
        "requests": seen.requests,
        "per_second": round(seen.requests / chosen.seconds, 1),
        "p50_ms": round(percentile(seen.milliseconds, 50), 2),
        "p99_ms": round(percentile(seen.milliseconds, 99), 2),
        "again": seen.again,
        "broken": seen.broken,
        "pods": seen.pods,
        "cuts": seen.cuts,
        "imds_failures": seen.imds_failures,
        "rss_mib": round(resident[-1], 1),
        "rss_mib_per_hour": round(seen.mib_per_hour(), 2),
    }
    measured: dict[str, float] = {
        "wrong": len(seen.wrong),
        "lost": len(seen.lost),
        "leaked_packets": leaked,
        "descriptors_growth": seen.descriptors_growth(),
        "growth_mib": round(resident[-1] - resident[len(resident) // 2], 2),
    }
    return tell("soak", figures | measured, BUDGET, measured)


if __name__ == "__main__":
    raise SystemExit(main())
