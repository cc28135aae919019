"""Trouble for a long time: is any token wrong or lost, and do memory and open files stay? `make bench` runs it.

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

from results import percentile, print_result
from system.load.soaking import Seen, Soak, Weather
from system.redirect.network import Network

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
    options = parser.parse_args()
    real = options.kubernetes == "real"
    weather = Weather(options.seconds, options.per_second, **({"pods": 8, "identities": 4} if real else {}))
    environment = on_a_cluster if real else alone
    with (
        tempfile.TemporaryDirectory() as directory,
        environment(Path(directory), weather) as (observations, leaks, restarts),
    ):
        return report("soak real" if real else "soak", observations, leaks, restarts)


def report(name: str, observations: Seen, leaks: int, restarts: int) -> int:
    """Print what was seen; return 1 when something is over its budget."""
    for sentence in [*observations.wrong, *observations.lost][:20]:
        print(sentence, file=sys.stderr)
    values: dict[str, float] = {
        "wrong": len(observations.wrong),
        "lost": len(observations.lost),
        "leaked_packets": leaks,
        "restarts": restarts,
        "descriptors_growth": max(daemon.descriptors_growth() for daemon in observations.daemons.values()),
        "growth_mib": round(max(daemon.growth_mib() for daemon in observations.daemons.values()), 2),
    }
    return print_result(name, figures(observations) | values, BUDGET, values)


@contextlib.contextmanager
def alone(directory: Path, weather: Weather) -> Iterator[tuple[Seen, int, int]]:
    """Run NMI alone; yield what was seen, how many packets passed it, and 0 restarts: nobody would restart it."""
    with Network("bridge") as network:
        with Soak(network, directory, weather) as soak:
            observations = soak.live_through()
        yield observations, network.leaked(), 0


@contextlib.contextmanager
def on_a_cluster(directory: Path, weather: Weather) -> Iterator[tuple[Seen, int, int]]:
    """Run both daemons on a real cluster; yield the same."""
    from cluster import harness, soaking  # noqa: PLC0415  # what a cluster needs, only for one

    with harness.start(directory, "--nodes", str(len(soaking.NODES))) as cluster:
        cluster.install()
        soak = soaking.Soak(cluster, weather)
        yield soak.live_through(), cluster.imds_packets(), soak.restarts


def figures(observations: Seen) -> dict[str, object]:
    """Return everything that was seen, for the JSON line."""
    return {
        "seconds": observations.seconds,
        "requests": observations.requests,
        "per_second": round(observations.requests / observations.seconds, 1),
        "p50_ms": round(percentile(observations.milliseconds, 50), 2),
        "p99_ms": round(percentile(observations.milliseconds, 99), 2),
        "again": observations.again,
        "broken": observations.broken,
        "pods": observations.pods,
        "cuts": observations.cuts,
        "cut_connections": observations.cut_connections,
        "imds_failures": observations.imds_failures,
        "rss_mib": {name: round(daemon.resident_mib[-1][1], 1) for name, daemon in observations.daemons.items()},
        "rss_mib_per_hour": {name: round(daemon.mib_per_hour(), 2) for name, daemon in observations.daemons.items()},
        "open_files": {name: daemon.descriptors[-1] for name, daemon in observations.daemons.items()},
    }


if __name__ == "__main__":
    raise SystemExit(main())
