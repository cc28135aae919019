"""Latency and rate of warm token requests against the number of keep-alive connections, beside Go's net/http.

`make bench` runs it. 250 pods, 20 identities, plain loopback, heads that were seen before; both servers on one core,
the load program on another, turn by turn.
"""

import argparse
import statistics
from typing import Any

from nmi import Server, references
from results import print_result, spread
from system.load.crowd import crowded, node_target

PODS, IDENTITIES = 250, 20
CONNECTIONS = (1, 8, 32, 128, 512)
BUDGET = {"p99_ms_at_32_connections": 2.0}
"""The largest value that is within the budget of docs/performance.md."""


def main() -> int:
    """Measure and print; exit status 1 when something is over its budget."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="how often each server is measured")
    parser.add_argument("--seconds", type=float, default=1.0, help="how long each time")
    options = parser.parse_args()
    runs: dict[str, dict[int, list[dict[str, Any]]]] = {}
    with crowded() as crowd:
        sources = crowd.fill(PODS, IDENTITIES, on_loopback=True)
        crowd.start("--redirect=none")
        assert crowd.process is not None
        with references(crowd, crowd.answer(sources[0], node_target())) as competitors:
            servers = [
                Server("nmi", crowd.process.pid, node_target()),
                *(server for server in competitors if server.name == "go"),
            ]
            for _ in range(options.rounds):
                for connections in CONNECTIONS:
                    for server in servers:
                        flags = (f"-connections={connections}", f"-seconds={options.seconds}")
                        report = crowd.load(sources, *flags, target=server.target)
                        runs.setdefault(server.name, {}).setdefault(connections, []).append(report)
    figures = {name: {str(many): summary(rounds) for many, rounds in by.items()} for name, by in runs.items()}
    return print_result(
        "connections", figures, BUDGET, {"p99_ms_at_32_connections": figures["nmi"]["32"]["p99_ms"]["median"]}
    )


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the medians over the rounds."""
    return {
        "p50_ms": spread([run["p50_ms"] for run in runs]),
        "p99_ms": spread([run["p99_ms"] for run in runs]),
        "per_second": round(statistics.median(run["requests"] / run["seconds"] for run in runs)),
    }


if __name__ == "__main__":
    raise SystemExit(main())
