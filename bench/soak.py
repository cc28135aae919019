"""Bad weather for a long time: is any token wrong or lost, and do memory and open files stay? `make bench`.

500 token requests a second through the real redirect, while pods come and go, watches are cut and 5 % of IMDS's answers
are errors. NMI alone on one node, or with `--kubernetes real` both daemons in pods of a real cluster of two nodes
(`make cluster-ready` first). `--seconds 1800` is the long one.
"""

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from system.load.soaking import Seen, Soak, Weather
from system.redirect.network import Network
from telling import percentile, tell

SHORT_SECONDS = 300.0
BUDGET = {
    "wrong": 0.0,
    "lost": 0.0,
    "leaked_packets": 0.0,
    "restarts": 0.0,
    "descriptors_growth": 8.0,
    "growth_mib": 4.0,
}
"""The largest values that are within the budget; growth is that of the daemon that grows most.

`growth_mib`: the last sample over that at half time.
"""


def main() -> int:
    """Measure and print; exit status 1 when something is over its budget."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=SHORT_SECONDS, help="how long")
    parser.add_argument("--per-second", type=float, default=500.0, help="requests a second, all pods together")
    parser.add_argument("--kubernetes", choices=["lab", "real"], default="lab", help="NMI alone, or a real cluster")
    chosen = parser.parse_args()
    real = chosen.kubernetes == "real"
    weather = Weather(chosen.seconds, chosen.per_second, **({"pods": 8, "identities": 4} if real else {}))
    lived = on_a_cluster if real else alone
    with tempfile.TemporaryDirectory() as directory, lived(Path(directory), weather) as (seen, leaked, restarts):
        return report("soak real" if real else "soak", seen, leaked, restarts)


def report(name: str, seen: Seen, leaked: int, restarts: int) -> int:
    """Print what was seen; exit status 1 when something is over its budget."""
    for told in [*seen.wrong, *seen.lost][:20]:
        print(told, file=sys.stderr)
    measured: dict[str, float] = {
        "wrong": len(seen.wrong),
        "lost": len(seen.lost),
        "leaked_packets": leaked,
        "restarts": restarts,
        "descriptors_growth": max(one.descriptors_growth() for one in seen.daemons.values()),
        "growth_mib": round(max(one.growth_mib() for one in seen.daemons.values()), 2),
    }
    return tell(name, figures(seen) | measured, BUDGET, measured)


@contextlib.contextmanager
def alone(directory: Path, weather: Weather) -> Iterator[tuple[Seen, int, int]]:
    """NMI alone: what was seen, how many packets passed it, and how often it restarted: it has nobody to do that."""
    with Network("bridge") as network:
        with Soak(network, directory, weather) as soak:
            seen = soak.live_through()
        yield seen, network.leaked(), 0


@contextlib.contextmanager
def on_a_cluster(directory: Path, weather: Weather) -> Iterator[tuple[Seen, int, int]]:
    """Both daemons on a real cluster: the same."""
    from cluster import harness, soaking  # noqa: PLC0415  # what a cluster needs, only for one

    with harness.start(directory, "--nodes", str(len(soaking.NODES))) as cluster:
        cluster.install()
        soak = soaking.Soak(cluster, weather)
        yield soak.live_through(), cluster.imds_packets(), soak.restarts


def figures(seen: Seen) -> dict[str, object]:
    """Everything that was seen."""
    return {
        "seconds": seen.seconds,
        "requests": seen.requests,
        "per_second": round(seen.requests / seen.seconds, 1),
        "p50_ms": round(percentile(seen.milliseconds, 50), 2),
        "p99_ms": round(percentile(seen.milliseconds, 99), 2),
        "again": seen.again,
        "broken": seen.broken,
        "pods": seen.pods,
        "cuts": seen.cuts,
        "cut_connections": seen.cut_connections,
        "imds_failures": seen.imds_failures,
        "rss_mib": {name: round(one.resident_mib[-1][1], 1) for name, one in seen.daemons.items()},
        "rss_mib_per_hour": {name: round(one.mib_per_hour(), 2) for name, one in seen.daemons.items()},
        "open_files": {name: one.descriptors[-1] for name, one in seen.daemons.items()},
    }


if __name__ == "__main__":
    raise SystemExit(main())
