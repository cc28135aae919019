"""How often MIC asks ARM: in a burst of pods, when nothing changes, and after a 429. `make bench` runs it.

MIC runs as a process between the lab's Kubernetes API and a stand-in for ARM.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import make
from daemons.mic.arm import Fault
from pod_to_token import running
from system.load.whole import Whole
from telling import tell

PODS, IDENTITIES = 200, 20
RETRY_AFTER_SECONDS = 3
TARGETS = {"n1": "ss", "n2": "slow", "n3": "ss"}
BUDGET = {"gets_for_each_target": 1.0, "patches_for_each_target": 1.0, "calls_while_idle": 0.0, "too_early": 0.0}
"""The largest values that are within the budget of docs/performance.md. `too_early`: calls before Retry-After."""


def main() -> int:
    """Measure and print; exit status 1 when something is over its budget."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--idle-seconds", type=float, default=10.0, help="how long nothing changes")
    chosen = parser.parse_args()
    with running() as whole:
        figures: dict[str, Any] = {"burst": burst(whole)}
        before = len(whole.arm.log)
        time.sleep(chosen.idle_seconds)
        figures["calls_while_idle"] = len(whole.arm.log) - before
        figures["pause_after_429_s"] = refused(whole)
    measured = {
        "gets_for_each_target": max(one["GET"] for one in figures["burst"].values()),
        "patches_for_each_target": max(one["PATCH"] for one in figures["burst"].values()),
        "calls_while_idle": figures["calls_while_idle"],
        "too_early": int(figures["pause_after_429_s"] < RETRY_AFTER_SECONDS),
    }
    return tell("arm_calls", figures, BUDGET, measured)


def burst(whole: Whole) -> dict[str, dict[str, int]]:
    """Bring all pods at once: the calls for each scale set."""
    for number in range(IDENTITIES):
        whole.tell_identity(f"id-{number}")
    nodes = list(TARGETS)
    whole.schedule_all((f"pod-{number}", f"id-{number % IDENTITIES}", nodes[number % 3]) for number in range(PODS))
    for number in range(PODS):
        whole.until_assigned(f"pod-{number}")
    return {
        name: {method: len(whole.arm.calls(method, make.target(name))) for method in ("GET", "PATCH")}
        for name in dict.fromkeys(TARGETS.values())
    }


def refused(whole: Whole) -> float:
    """Answer 429 to the next PATCH: the seconds until that scale set is asked for again."""
    headers = {"Retry-After": str(RETRY_AFTER_SECONDS)}
    whole.arm.patches.append(Fault(429, "TooManyRequests", "slow down", headers))
    before = len(whole.arm.log)
    whole.tell_identity("late")
    whole.schedule("late", "late", node="n2")
    whole.until_assigned("late")
    refused_at, next_at = [at for at, method, _, _ in whole.arm.log[before:] if method == "PATCH"][:2]
    return round(next_at - refused_at, 2)


if __name__ == "__main__":
    raise SystemExit(main())
