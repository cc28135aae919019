"""How long a pod waits for its token, from the moment it has its node and address. `make bench` runs it.

NMI and MIC run as processes between the lab's Kubernetes API and stand-ins for ARM and IMDS; a client in the pod asks
all the time, through the real redirect. Pods come whose identity is on their scale set already; then the same while
another scale set's PATCH hangs. Another node has put the identities there, so that each one's first pod here also waits
for IMDS.
"""

import argparse
import asyncio
import contextlib
import itertools
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import make
from results import percentile, print_result, start_seconds
from system.load.whole import Whole
from system.redirect.network import Network
from waiting import until

IDENTITIES = 20
ADDRESSES = [f"10.244.7.{last}" for last in range(10, 250)]
BETWEEN_SECONDS = 0.02
PODS_PER_START = 5
BUDGET = {"p99_quiet_over_start": 2.0, "p99_hung_over_start": 2.0}
"""The largest values that are within the budget of docs/performance.md; `start`: of a Python, see `results`."""


def main() -> int:
    """Measure and print; exit status 1 when something is over its budget."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pods", type=int, default=100, help="how many pods come, each of the two times")
    options = parser.parse_args()
    with running() as node:
        figures: dict[str, Any] = {"quiet": present(node, "quiet", options.pods)}
        with hanging(node):
            figures["hung"] = present(node, "hung", options.pods)
        figures["leaked_packets"] = node.network.leaked()
    values = {f"p99_{phase}_over_start": figures[phase]["token_p99_over_start"] for phase in ("quiet", "hung")}
    return print_result("pod_to_token", figures, BUDGET, values)


@contextlib.contextmanager
def running() -> Iterator[Whole]:
    """Run both daemons in a cluster of three nodes, two of one scale set and one of another; yield them."""
    with (
        tempfile.TemporaryDirectory() as directory,
        Network("bridge") as network,
        Whole(network, Path(directory)) as node,
    ):
        node.give_addresses(ADDRESSES)
        for name in ("ss", "slow"):
            node.cluster.call(node.arm.machine, make.target(name))
        node.tell(make.node("n1", "ss"), make.node("n2", "slow"), make.node("n3", "ss"))
        node.start_mic()
        node.start("--anti-spoof=off")
        yield node


def present(node: Whole, phase: str, pods: int) -> dict[str, float]:
    """Create pods whose identity another node has put on the scale set; this node has no token yet for the first."""
    names = [f"{phase}-{number}" for number in range(IDENTITIES)]
    for name in names:
        node.tell_identity(name)
        node.schedule(f"{name}-elsewhere", name, node="n3")
    for name in names:
        node.until_assigned(f"{name}-elsewhere")
    assigned_ms, token_ms, start_ms = [], [], []
    for number, address in zip(range(pods), itertools.cycle(ADDRESSES), strict=False):
        if number % PODS_PER_START == 0:
            start_ms.append(start_seconds() * 1e3)
        milliseconds = run_pod(node, f"{phase}-pod-{number}", names[number % IDENTITIES], address)
        assigned_ms.append(milliseconds[0])
        token_ms.append(milliseconds[1])
    over_start = percentile(token_ms, 99) / percentile(start_ms, 50)
    return {
        **figures_of("token", token_ms),
        **figures_of("assigned", assigned_ms),
        "pods": pods,
        "start_p50_ms": round(percentile(start_ms, 50), 1),
        "token_p99_over_start": round(over_start, 2),
    }


def run_pod(node: Whole, pod: str, identity: str, address: str) -> tuple[float, float]:
    """Create a pod, wait for its token and delete it; return what `wait_for_token` does."""
    milliseconds = wait_for_token(node, pod, identity, address)
    node.remove_pod(pod)
    return milliseconds


def wait_for_token(node: Whole, pod: str, identity: str, address: str) -> tuple[float, float]:
    """Return the milliseconds until a new pod's identity is Assigned, and until it has its token."""
    time.sleep(BETWEEN_SECONDS)
    asking = node.asking(address)
    start = node.schedule(pod, identity, address=address)
    end, token = asking.answer(90)
    if not token.startswith(f"token of {identity} for "):
        raise SystemExit(f"pod {pod} of {identity} got: {token[:60]}")
    assigned_at = node.until_assigned(pod)
    return (assigned_at - start) * 1e3, (end - start) * 1e3


def figures_of(name: str, milliseconds: Sequence[float]) -> dict[str, float]:
    """Return median, p99 and most, by name."""
    values = {"p50": percentile(milliseconds, 50), "p99": percentile(milliseconds, 99), "most": max(milliseconds)}
    return {f"{name}_{rank}_ms": round(value, 1) for rank, value in values.items()}


@contextlib.contextmanager
def hanging(node: Whole) -> Iterator[None]:
    """Let the other scale set's PATCH hang while the body runs."""
    gate = node.cluster.call(asyncio.Event)
    node.arm.machine(make.target("slow")).gate = gate
    node.tell_identity("hanging")
    node.schedule("hangs", "hanging", node="n2")
    until(lambda: node.arm.calls("PATCH", make.target("slow")), "the PATCH that hangs")
    try:
        yield
    finally:
        if "hangs" in node.assigned_at:
            raise SystemExit("the PATCH did not hang")
        node.cluster.call(gate.set)


if __name__ == "__main__":
    raise SystemExit(main())
