"""How long a pod waits for a token of an identity that is on no scale set yet, beyond what ARM takes. `make bench`.

The same cluster as in pod_to_token.py, made afresh for each length of the PATCH. What counts is the first PATCH of a
scale set that was left alone; each further one within minutes gathers longer, because ARM allows few of them: those are
shown as well.
"""

import argparse
from typing import Any

from pod_to_token import ADDRESSES, running, wait_for_token
from results import percentile, print_result, spread, start_seconds

STARTS = 5
ARM_SECONDS = (0.0, 1.0, 2.0, 4.0)
BUDGET = {"beyond_arm_over_start": 4.0}
"""The largest value that is within the budget of docs/performance.md; `start`: of a Python, see `results`."""


def main() -> int:
    """Measure and print; exit status 1 when something is over its budget."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pods", type=int, default=2, help="how many pods, each with an identity of its own")
    options = parser.parse_args()
    figures = {f"{seconds:g}": new(seconds, options.pods) for seconds in ARM_SECONDS}
    over_start = spread([figure["token_ms"][0] / figure["start_ms"] for figure in figures.values()], 2)
    return print_result("new_identity", figures, BUDGET, {"beyond_arm_over_start": over_start["most"]})


def new(arm_seconds: float, pods: int) -> dict[str, Any]:
    """Create pods and measure. They stay: else a PATCH would first take the last one's identity away."""
    with running() as node:
        node.arm.patch_seconds = arm_seconds
        assigned_ms, token_ms = [], []
        start_ms = percentile([start_seconds() * 1e3 for _ in range(STARTS)], 50)
        for number, address in zip(range(pods), ADDRESSES, strict=False):
            identity = f"new-{number}"
            node.tell_identity(identity)
            milliseconds = wait_for_token(node, f"pod-{number}", identity, address)
            assigned_ms.append(round(milliseconds[0] - arm_seconds * 1e3, 1))
            token_ms.append(round(milliseconds[1] - arm_seconds * 1e3, 1))
        calls = len(node.arm.calls("PATCH"))
        return {"start_ms": round(start_ms, 1), "assigned_ms": assigned_ms, "token_ms": token_ms, "patches": calls}


if __name__ == "__main__":
    raise SystemExit(main())
