"""What a cluster full of pods costs MIC: time to plan, time from pod to Assigned, calls, CPU and memory. `make bench`.

`plan` is the decision alone. The others run `podidentity mic` as a process, between a Kubernetes API (the lab's in this
process; with `real`, kube-apiserver and etcd) and a stand-in for ARM in this process: first all pods at once; then one
scale set's PATCH hangs for the rest of the run, and pods come one by one whose identity is on their scale sets already,
the hanging one included. `--hang-seconds` lets that last. Each prints one JSON line. `limit` is as much as Kubernetes
promises to bear: 100,000 pods, some twenty minutes of an API server on two quiet cores.
"""

import argparse
import asyncio
import contextlib
import gc
import logging
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import uvloop

import clusters
import make
import results
from daemons.mic.arm import StandInArm
from podidentity.core.assignment import assigning, planning
from podidentity.core.model.arm import ArmState
from podidentity.core.model.identities import AssignedState, AzureAssignedIdentity, AzureIdentity, AzureIdentityBinding
from podidentity.core.model.snapshot import Pod, Snapshot
from processes import cpu_seconds, peak_mib
from results import percentile
from waiting import eventually

PATCH_SECONDS = 5.0
LONE_PODS = 200
LONE_SECONDS = 0.1  # between two of the pods that come one by one
LOOPS = 10  # before and after each run
PLAN_PODS = (1_000, 2_000, 5_000, 10_000, 20_000)


@dataclass(frozen=True)
class Size:
    """A cluster. Pods, identities and nodes are spread evenly."""

    name: str
    pods: int
    identities: int
    namespaces: int
    nodes: int
    scale_sets: int


SMALL = Size("2,000 pods", 2_000, 100, 100, 30, 3)
LARGE = Size("10,000 pods", 10_000, 1_000, 100, 500, 20)
LIMIT = Size("100,000 pods", 100_000, 2_000, 100, 5_000, 50)
RUNS = {
    "small": (f"mic {SMALL.name}", SMALL, clusters.in_process),
    "large": (f"mic {LARGE.name}", LARGE, clusters.in_process),
    "real": ("mic real", SMALL, clusters.real),
    "real-large": ("mic real large", LARGE, clusters.real),
    "limit": ("mic limit", LIMIT, clusters.real),
}

_SMALL = {"cpu_over_loop": 300.0, "rss_mb": 135.0, "patches": 6}
_IN_TIME = {"assigned_over_patch": 2.2}  # from the last of the pods to the last Assigned; the lab's come all at once
_LARGE = {"cpu_over_loop": 1400.0, "rss_mb": 300.0, "patches": 160, "lone_p99_over_small": 2.0}
"""Five times the pods. 500 identities for each of 20 scale sets, at most 150 a PATCH: 80 PATCHes at least."""
_LIMIT = {"rss_mb": 600.0, "lone_p99_over_small": 4.0}
BUDGET = {
    "plan": {"plan_over_loop": 8.0, "growth": 1.5},
    "small": _SMALL,
    "large": _LARGE,
    "real": _SMALL | _IN_TIME,
    "real-large": _LARGE,
    "limit": _LIMIT,
}
"""The largest values that are within the budget. `growth` is a pod's cost among 20,000 over that among 1,000.

What is a time is a ratio to what the same run measured: a loop of pure Python; `lone_p99_over_small` to the p99 of lone
pods among 2,000, beside the same API; `assigned_over_patch` to ARM's time for a PATCH, of which a scale set needs two.
"""


def main() -> int:
    """Measure and print; exit status 1 when something is over its budget."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="plan,small,large", help=f"plan, {', '.join(RUNS)}: separated by commas")
    parser.add_argument("--hang-seconds", type=float, default=LONE_PODS * LONE_SECONDS, help="of one scale set")
    parser.add_argument("--patch-seconds", type=float, default=PATCH_SECONDS, help="how long ARM takes")
    parser.add_argument("--rounds", type=int, default=9, help="how often plan and loop are measured in turn")
    options = parser.parse_args()
    names, excess = options.only.split(","), 0
    if "plan" in names:
        excess |= print_plan(options.rounds)
    for name, (bench, size, factory) in RUNS.items():
        if name in names:
            figures = measure_daemon(name, size, factory, options)
            values = {entry: figures[entry] for entry in BUDGET[name]}
            excess |= results.print_result(bench, figures, BUDGET[name], values)
    return excess


def measure_daemon(name: str, size: Size, factory: "ClusterFactory", options: argparse.Namespace) -> dict[str, Any]:
    """Measure a cluster, and one of 2,000 pods beside it where the budget compares the two."""
    figures = run_daemon(size, factory, options)
    if "lone_p99_over_small" in BUDGET[name]:
        small = run_daemon(SMALL, factory, options)
        figures |= {f"small_{entry}": small[entry] for entry in ("lone_p50_ms", "lone_p99_ms")}
        figures["lone_p99_over_small"] = round(figures["lone_p99_ms"] / small["lone_p99_ms"], 2)
    return figures


def run_daemon(size: Size, factory: "ClusterFactory", options: argparse.Namespace) -> dict[str, Any]:
    """Run MIC in a cluster of this size: the figures."""
    loops = [results.loop_seconds() for _ in range(LOOPS)]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        figures = runner.run(measure(size, factory, options.patch_seconds, options.hang_seconds))
    loops += [results.loop_seconds() for _ in range(LOOPS)]
    figures["load"] = round(os.getloadavg()[0], 1)
    figures["cpu_over_loop"] = round(figures["cpu_s"] / statistics.median(loops))
    figures["assigned_over_patch"] = round(figures["last_pod_to_all_assigned_s"] / options.patch_seconds, 2)
    return figures


# The decision alone.


def print_plan(rounds: int) -> int:
    """Plan for more and more pods, nothing assigned yet and everything assigned; return 1 when over the budget.

    A plan for 10,000 and the loop take turns; so do plans for the fewest and the most pods.
    """
    figures: dict[str, Any] = {}
    plans: dict[int, Callable[[], float]] = {}
    for pods in PLAN_PODS:
        fresh = snapshot(Size("", pods, 1_000, 100, 500, 20))
        first, later = (partial(cpu_of_plan, cluster) for cluster in (fresh, everything_assigned(fresh)))
        plans[pods] = first
        for name, act in (("first", first), ("settled", later)):
            figures[f"{name}_{pods}_ms"] = round(min(act() for _ in range(3)) * 1e3, 1)
    figures["plan_ms"] = figures["first_10000_ms"]
    over_loop = results.ratios(plans[10_000], results.loop_seconds, rounds)
    growth = results.ratios(lambda: plans[20_000]() / 20, plans[1_000], rounds)
    figures |= {"plan_over_loop": over_loop, "growth": growth["median"]}
    return results.print_result("mic plan", figures, BUDGET["plan"], {"plan_over_loop": over_loop, "growth": growth})


def plan(cluster: Snapshot) -> planning.Plan:
    """Return MIC's plan for a cluster."""
    return planning.plan(assigning.desired_assignments(cluster, make.policy()), cluster, make.policy())


def cpu_of_plan(cluster: Snapshot) -> float:
    """Return the seconds of CPU that a plan takes; MIC makes it without the collector, too."""
    gc.collect()
    gc.disable()
    start = time.process_time()
    plan(cluster)
    seconds = time.process_time() - start
    gc.enable()
    return seconds


def everything_assigned(fresh: Snapshot) -> Snapshot:
    """Return the cluster as it is when the plan for `fresh` has been carried out."""
    first = plan(fresh)
    assigned_identities = tuple(copy_as_stored(write.assigned_identity) for write in first.writes)
    targets = {target: ArmState(in_use) for target, in_use in first.in_use.items()}
    return replace(fresh, assigned_identities=assigned_identities, targets=targets, assigned_by_mic=dict(first.in_use))


def copy_as_stored(assigned_identity: AzureAssignedIdentity) -> AzureAssignedIdentity:
    """Return an object as the API gives it back: equal, and no part of it the same object in memory."""
    identity, binding = replace(assigned_identity.identity), replace(assigned_identity.binding)
    return replace(assigned_identity, identity=identity, binding=binding, state=AssignedState.ASSIGNED)


def objects(size: Size) -> tuple[list[AzureIdentity], list[AzureIdentityBinding]]:
    """Return identities and one binding for each, spread over the namespaces."""
    spaces = [f"team-{number % size.namespaces}" for number in range(size.identities)]
    identities = [make.identity(f"id-{number}", spaces[number]) for number in range(size.identities)]
    bindings = [
        make.binding(f"b-{number}", spaces[number], f"id-{number}", f"s-{number}") for number in range(size.identities)
    ]
    return identities, bindings


def pod(size: Size, number: int, prefix: str = "p") -> Pod:
    """Return one pod. The pods of one identity are on nodes far apart."""
    return make.pod(
        f"{prefix}-{number}",
        f"team-{number % size.namespaces}",
        node=f"n-{number * 7919 // size.identities % size.nodes}",
        selector=f"s-{number % size.identities}",
    )


def snapshot(size: Size) -> Snapshot:
    """Return a cluster as MIC sees it."""
    identities, bindings = objects(size)
    nodes = {f"n-{number}": make.node(f"n-{number}", f"ss-{number % size.scale_sets}") for number in range(size.nodes)}
    return make.snapshot([pod(size, number) for number in range(size.pods)], identities, bindings, nodes=nodes)


# The daemon.


class Watch:
    """When each pod was created and when its identity was Assigned, as the cluster reports."""

    def __init__(self, cluster: clusters.Cluster) -> None:
        self.created_at: dict[tuple[str, str], float] = {}
        self.assigned_at: dict[tuple[str, str], float] = {}
        cluster.report = lambda *pod: self._note(self.assigned_at, pod)

    def note_created(self, *pod: str) -> None:
        """Note that a pod has been created."""
        self._note(self.created_at, pod)

    def _note(self, moments: dict[tuple[str, str], float], pod: tuple[str, ...]) -> None:
        moments.setdefault((pod[0], pod[1]), time.monotonic())

    def milliseconds(self, prefix: str) -> list[float]:
        """Return how long each pod waited, from the shortest to the longest."""
        return sorted(
            (self.assigned_at[key] - moment) * 1e3
            for key, moment in self.created_at.items()
            if key[1].startswith(prefix)
        )

    async def until_all(self, limit_seconds: float) -> None:
        """Return when every pod has its identity."""
        await eventually(
            lambda: self.created_at.keys() <= self.assigned_at.keys(), "each pod has its identity", limit_seconds
        )


ClusterFactory = Callable[[Path], AbstractAsyncContextManager[tuple[clusters.Cluster, str]]]


async def measure(size: Size, factory: ClusterFactory, patch_seconds: float, hang_seconds: float) -> dict[str, Any]:
    """Run MIC in a cluster of this size."""
    arm = StandInArm()
    arm.patch_seconds, arm.retry_after = patch_seconds, "1"
    for number in range(size.scale_sets):
        arm.machine(make.target(f"ss-{number}"))
    with tempfile.TemporaryDirectory() as folder:
        async with arm.listening(), factory(Path(folder)) as (cluster, kubeconfig):
            identities, bindings = objects(size)
            nodes = [make.node(f"n-{number}", f"ss-{number % size.scale_sets}") for number in range(size.nodes)]
            await cluster.create([*nodes, *identities, *bindings])
            watch = Watch(cluster)
            async with running(arm, kubeconfig, Path(folder)) as mic:
                figures = await burst(size, cluster, arm, watch, mic)
                figures |= await lone(size, cluster, arm, watch, mic, hang_seconds)
                figures |= {"rss_mb": round(peak_mib(mic.pid) * 2**20 / 1e6, 1), "patch_s": patch_seconds}
    return figures


async def burst(
    size: Size, cluster: clusters.Cluster, arm: StandInArm, watch: Watch, mic: asyncio.subprocess.Process
) -> dict[str, Any]:
    """Create all pods at once, and measure until all are Assigned."""
    cpu, requests, start = cpu_seconds(mic.pid), cluster.calls, time.monotonic()
    await cluster.create((pod(size, number) for number in range(size.pods)), watch.note_created)
    last = time.monotonic()
    await watch.until_all(2400)
    calls = {} if requests is None else {"kubernetes_calls": (cluster.calls or 0) - requests}
    return {
        "created_in_s": round(last - start, 2),
        "last_pod_to_all_assigned_s": round(max(watch.assigned_at.values()) - last, 2),
        "p50_ms": round(statistics.median(watch.milliseconds("p"))),
        "p99_ms": round(percentile(watch.milliseconds("p"), 99)),
        "cpu_s": round(cpu_seconds(mic.pid) - cpu, 2),
        **calls,
        "gets": len(arm.calls("GET")),
        "patches": len(arm.calls("PATCH")),
        "identities_on_scale_sets": sum(len(machine.identities) for machine in arm.machines.values()),
        "plans": await read_metric("mic_cycle_count"),
    }


async def lone(
    size: Size,
    cluster: clusters.Cluster,
    arm: StandInArm,
    watch: Watch,
    mic: asyncio.subprocess.Process,
    hang_seconds: float,
) -> dict[str, Any]:
    """Let one scale set hang, and create pods one by one whose identities are on their scale sets already."""
    hanging = arm.machine(make.target("ss-0"))
    hanging.gate = asyncio.Event()
    patches_before, cpu = len(arm.calls("PATCH")), cpu_seconds(mic.pid)
    await cluster.create([make.identity("new", "team-0"), make.binding("new", "team-0", "new", "new")])
    await cluster.create([make.pod("hangs", "team-0", node="n-0", selector="new")])
    await eventually(lambda: len(arm.calls("PATCH")) > patches_before, "a PATCH")
    for number in range(LONE_PODS):
        await cluster.create([pod(size, number, "lone")], watch.note_created)
        await asyncio.sleep(hang_seconds / LONE_PODS)
    await watch.until_all(120)
    hanging.gate.set()
    milliseconds = watch.milliseconds("lone")
    return {
        "lone_p50_ms": round(statistics.median(milliseconds), 1),
        "lone_p99_ms": round(percentile(milliseconds, 99), 1),
        "lone_cpu_s": round(cpu_seconds(mic.pid) - cpu, 2),
        "hang_s": hang_seconds,
        "terms": await read_metric("mic_new_leader_election_count"),  # more: the API server did not answer in time
    }


async def read_metric(name: str) -> int:
    """Return the value of one of MIC's metrics, by the end of its name."""
    async with httpx2.AsyncClient(trust_env=False) as http:
        page = (await http.get("http://127.0.0.1:18888/metrics")).text
    (line,) = (line for line in page.splitlines() if line.startswith(f"aadpodidentity_{name} "))
    return int(float(line.split()[1]))


async def leads() -> bool:
    """Whether MIC is the leader."""
    async with httpx2.AsyncClient(trust_env=False) as http:
        try:
            return (await http.get("http://127.0.0.1:18080/healthz")).text == "Active"
        except httpx2.HTTPError:
            return False


@contextlib.asynccontextmanager
async def running(arm: StandInArm, kubeconfig: str, folder: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run `podidentity mic` until it leads."""
    path, environ = arm.write_config(folder)
    flags = [f"--kubeconfig={kubeconfig}", f"--cloudconfig={path}", "--http-probe-port=18080"]
    program = [*clusters.BOUND, str(Path(sys.executable).parent / "podidentity")]
    command = [*program, "mic", *flags, "--prometheus-port=18888"]
    environment: dict[str, Any] = {**os.environ, **environ, "MIC_POD_NAMESPACE": "default"}
    with (folder / "mic.log").open("wb") as log:
        mic = await asyncio.create_subprocess_exec(*command, env=environment, stdout=log, stderr=log)
        try:
            async with asyncio.timeout(60):
                while not await leads():  # noqa: ASYNC110  # it comes true in another process
                    await asyncio.sleep(0.1)
            yield mic
        except BaseException:
            print((folder / "mic.log").read_text()[-3000:], file=sys.stderr)
            raise
        finally:
            if mic.returncode is None:
                mic.terminate()
            await mic.wait()


if __name__ == "__main__":
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # MIC hangs up at the end
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
    raise SystemExit(main())
