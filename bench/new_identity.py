"""How long a pod waits for a token of an identity that is on no scale set yet, beyond what ARM takes. `make bench`.

The same cluster as in pod_to_token.py, made afresh for each length of the PATCH. What counts is the first PATCH of a
scale set that was left alone; each further one within minutes gathers longer, because ARM allows few of them: those are
told as well.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from pod_to_token import ADDRESSES, come, running
from telling import tell

ARM_SECONDS = (0.0, 1.0, 2.0, 4.0)
BUDGET = {"beyond_arm_ms": 200.0}
"""The largest value that is within the budget of docs/performance.md."""


def main() -> int:
    """Measure and print; exit status 1 when something is over its budget."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pods", type=int, default=2, help="how many pods, each with an identity of its own")
    chosen = parser.parse_args()
    figures = {f"{seconds:g}": new(seconds, chosen.pods) for seconds in ARM_SECONDS}
    return tell("new_identity", figures, BUDGET, {"beyond_arm_ms": max(one["token_ms"][0] for one in figures.values())})


def new(arm_seconds: float, pods: int) -> dict[str, Any]:
    """Bring pods; they stay, else the PATCH that takes the last one's identity away would come first."""
    with running() as whole:
        whole.arm.patch_seconds = arm_seconds
        assigned, token = [], []
        for number, address in zip(range(pods), ADDRESSES, strict=False):
            identity = f"new-{number}"
            whole.tell_identity(identity)
            milliseconds = come(whole, f"pod-{number}", identity, address)
            assigned.append(round(milliseconds[0] - arm_seconds * 1e3, 1))
            token.append(round(milliseconds[1] - arm_seconds * 1e3, 1))
        return {"assigned_ms": assigned, "token_ms": token, "patches": len(whole.arm.calls("PATCH"))}


if __name__ == "__main__":
    raise SystemExit(main())
