"""A full node under load for minutes: is every answer right, and does memory stay? `make bench` runs it.

250 pods and 20 identities, through the real redirect; every body is read and compared with the pod's own identity. The
last line printed is one JSON object.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from system.load.crowd import Crowd
from system.redirect.network import Network

PODS, IDENTITIES = 250, 20
RSS_BUDGET_MIB = 52.0
GROWTH_MIB = 4.0  # allocators breathe


def main() -> int:
    """Measure and print; exit status 1 when something is over its budget or wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long with 32 and with 512 connections")
    seconds = parser.parse_args().seconds
    texts = ",".join(f"token of identity-{number % IDENTITIES} for" for number in range(PODS))
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as directory, Network("bridge") as network:
        with Crowd(network, Path(directory)) as crowd:
            sources = crowd.fill(PODS, IDENTITIES)
            crowd.start("--anti-spoof=off")
            for connections in (32, 512):
                flags = (f"-connections={connections}", "-unique", f"-expect={texts}")
                crowd.load(sources, *flags, "-seconds=2")
                warm = crowd.resident_mib()
                figure = crowd.load(sources, *flags, f"-seconds={seconds}")
                print(f"{connections} connections: {figure['requests']} requests", file=sys.stderr)
                figures[f"{connections} connections"] = figure | {
                    "rss_mib": round(crowd.resident_mib(), 1),
                    "growth_mib": round(crowd.resident_mib() - warm, 1),
                }
        figures["leaked_packets"] = network.leaked()
    wrong = [name for name, figure in figures.items() if isinstance(figure, dict) and not is_right(figure)]
    is_within = not wrong and figures["leaked_packets"] == 0
    print(json.dumps({"bench": "nmi_load", "figures": figures, "over": wrong, "within_budget": is_within}))
    return 0 if is_within else 1


def is_right(figure: dict[str, Any]) -> bool:
    """Whether there was no error and no wrong token, and memory stayed within its budget."""
    correct = figure["statuses"] == {"200": figure["requests"]} and not figure["failures"] and not figure["wrong"]
    return correct and figure["rss_mib"] <= RSS_BUDGET_MIB and figure["growth_mib"] <= GROWTH_MIB


if __name__ == "__main__":
    raise SystemExit(main())
