"""How often MIC asks ARM: in a burst of pods, when nothing changes, and after a 429. `make bench` runs it.

MIC runs as a process between the lab's Kubernetes API and a stand-in for ARM.
"""

import argparse
import time
from typing import Any

import make
from daemons.mic.arm import Fault
from pod_to_token import running
from results import print_result
from system.load.whole import Whole

PODS, IDENTITIES = 200, 20
RETRY_AFTER_SECONDS = 3
TARGETS = {"n1": "ss", "n2": "slow", "n3": "ss"}
BUDGET = {"gets_for_each_target": 1.0, "patches_for_each_target": 1.0, "calls_while_idle": 0.0, "too_early": 0.0}
"""The largest values that are within the budget of docs/performance.md. `too_early`: calls before Retry-After."""


def main() -> int:
    """Measure and print; exit status 1 when something is over its budget."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--idle-seconds", type=float, default=10.0, help="how long nothing changes")
    options = parser.parse_args()
    with running() as node:
        figures: dict[str, Any] = {"burst": burst(node)}
        calls_before = len(node.arm.log)
        time.sleep(options.idle_seconds)
        figures["calls_while_idle"] = len(node.arm.log) - calls_before
        figures["pause_after_429_s"] = pause_after_429(node)
    values = {
        "gets_for_each_target": max(calls["GET"] for calls in figures["burst"].values()),
        "patches_for_each_target": max(calls["PATCH"] for calls in figures["burst"].values()),
        "calls_while_idle": figures["calls_while_idle"],
        "too_early": int(figures["pause_after_429_s"] < RETRY_AFTER_SECONDS),
    }
    return print_result("arm_calls", figures, BUDGET, values)


def burst(node: Whole) -> dict[str, dict[str, int]]:
    """Create all pods at once; return the calls for each scale set."""
    for number in range(IDENTITIES):
        node.tell_identity(f"id-{number}")
    nodes = list(TARGETS)
    node.schedule_all((f"pod-{number}", f"id-{number % IDENTITIES}", nodes[number % 3]) for number in range(PODS))
    for number in range(PODS):
        node.until_assigned(f"pod-{number}")
    return {
        name: {method: len(node.arm.calls(method, make.target(name))) for method in ("GET", "PATCH")}
        for name in dict.fromkeys(TARGETS.values())
    }


def pause_after_429(node: Whole) -> float:
    """Answer 429 to the next PATCH; return the seconds until MIC asks for that scale set again."""
    headers = {"Retry-After": str(RETRY_AFTER_SECONDS)}
    node.arm.patches.append(Fault(429, "TooManyRequests", "slow down", headers))
    calls_before = len(node.arm.log)
    node.tell_identity("late")
    node.schedule("late", "late", node="n2")
    node.until_assigned("late")
    refused_at, next_at = [moment for moment, method, _, _ in node.arm.log[calls_before:] if method == "PATCH"][:2]
    return round(next_at - refused_at, 2)


if __name__ == "__main__":
    raise SystemExit(main())
