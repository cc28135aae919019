"""What a cluster full of pods costs MIC: time to plan, time from pod to Assigned, calls, CPU and memory. `make bench`.

`plan` is the decision alone. The others run `podidentity mic` as a process, between the lab's Kubernetes API and a
stand-in for ARM in this process: first all pods at once; then one scale set's PATCH hangs for the rest of the run, and
pods come one by one whose identity is on their scale sets already, the hanging one included. Each prints one JSON line.
"""

import argparse
import asyncio
import contextlib
import gc
import json
import logging
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import uvloop
import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import make
from daemons.mic import conftest as worlds
from daemons.mic.arm import StandInArm
from podidentity.core import assigning, planning
from podidentity.core.arm import TargetState
from podidentity.core.cluster import Pod, Snapshot
from podidentity.core.identities import (
    AssignedState,
    AzureAssignedIdentity,
    AzureIdentity,
    AzureIdentityBinding,
)
from podidentity.lab.kubernetes import Kubernetes

ROOT = Path(__file__).parents[1]
PATCH_SECONDS = 5.0
LONE_PODS = 100
LONE_SECONDS = 0.1  # between two of them
PLAN_PODS = (1_000, 2_000, 5_000, 10_000, 20_000)
ASSIGNED = "azureassignedidentities.aadpodidentity.k8s.io"


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

BUDGET = {
    "plan 10,000 pods": {"plan_ms": 150.0, "growth": 1.5},
    SMALL.name: {"last_pod_to_all_assigned_s": 10.0, "cpu_s": 5.4, "rss_mb": 135.0, "patches": 6, "lone_p99_ms": 150.0},
    LARGE.name: {},
}
"""The largest values that are within the budget. `growth` is a pod's cost among 20,000 over that among 1,000."""


def main() -> int:
    """Measure and print; exit status 1 when something is over its budget."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="plan,small,large", help="plan, small, large: separated by commas")
    parser.add_argument("--patch-seconds", type=float, default=PATCH_SECONDS, help="how long ARM takes")
    chosen = parser.parse_args()
    only, over = chosen.only.split(","), False
    if "plan" in only:
        over |= told("mic plan", measure_plan(), BUDGET["plan 10,000 pods"])
    for size, name in ((SMALL, "small"), (LARGE, "large")):
        if name in only:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                figures = runner.run(measure(size, chosen.patch_seconds))
            over |= told(f"mic {size.name}", figures, BUDGET[size.name])
    return 1 if over else 0


def told(bench: str, figures: dict[str, float], budget: dict[str, float]) -> bool:
    """Print one line; say whether something is over its budget."""
    over = [name for name, most in budget.items() if figures[name] > most]
    line = {"bench": bench, "figures": figures, "budget": budget, "over": over, "within_budget": not over}
    print(json.dumps(line), flush=True)
    return bool(over)


# The decision alone.


def measure_plan() -> dict[str, float]:
    """Plan for more and more pods: nothing assigned yet, and everything assigned."""
    figures: dict[str, float] = {}
    each: dict[int, float] = {}
    for pods in PLAN_PODS:
        fresh = snapshot(Size("", pods, 1_000, 100, 500, 20))
        settled = everything_assigned(fresh)
        first, again = best(partial(plan, fresh)), best(partial(plan, settled))
        figures[f"first_{pods}_ms"], figures[f"settled_{pods}_ms"] = round(first * 1e3, 1), round(again * 1e3, 1)
        each[pods] = max(first, again) / pods
    figures["plan_ms"] = round(each[10_000] * 10_000 * 1e3, 1)
    figures["growth"] = round(each[20_000] / each[1_000], 2)
    return figures


def plan(of: Snapshot) -> planning.Plan:
    """Decide."""
    return planning.plan(assigning.wanted(of, make.policy()), of, make.policy())


def best(act: Callable[[], object]) -> float:
    """Seconds of CPU, the best of five: everything else the machine does only adds."""
    times = []
    gc.collect()
    gc.freeze()  # as the daemon does after its first list
    for _ in range(5):
        began = time.process_time()
        act()
        times.append(time.process_time() - began)
    gc.unfreeze()
    return min(times)


def everything_assigned(fresh: Snapshot) -> Snapshot:
    """The same cluster when all is done."""
    made = plan(fresh)
    assigned = tuple(stored(write.assigned) for write in made.writes)
    targets = {target: TargetState(in_use) for target, in_use in made.in_use.items()}
    return replace(fresh, assigned=assigned, targets=targets, put=dict(made.in_use))


def stored(one: AzureAssignedIdentity) -> AzureAssignedIdentity:
    """Copy an object as the API gives it back: nothing of it is the same in memory as what it was made from."""
    identity, binding = replace(one.identity), replace(one.binding)
    return replace(one, identity=identity, binding=binding, state=AssignedState.ASSIGNED)


def objects(size: Size) -> tuple[list[AzureIdentity], list[AzureIdentityBinding]]:
    """Identities and one binding for each, spread over the namespaces."""
    spaces = [f"team-{number % size.namespaces}" for number in range(size.identities)]
    identities = [make.identity(f"id-{number}", spaces[number]) for number in range(size.identities)]
    bindings = [
        make.binding(f"b-{number}", spaces[number], f"id-{number}", f"s-{number}") for number in range(size.identities)
    ]
    return identities, bindings


def pod(size: Size, number: int, prefix: str = "p") -> Pod:
    """One pod. The pods of one identity are on nodes far apart."""
    return make.pod(
        f"{prefix}-{number}",
        f"team-{number % size.namespaces}",
        node=f"n-{number * 7919 // size.identities % size.nodes}",
        selector=f"s-{number % size.identities}",
    )


def snapshot(size: Size) -> Snapshot:
    """A cluster as MIC sees it."""
    identities, bindings = objects(size)
    nodes = {f"n-{number}": make.node(f"n-{number}", f"ss-{number % size.scale_sets}") for number in range(size.nodes)}
    return make.snapshot([pod(size, number) for number in range(size.pods)], identities, bindings, nodes=nodes)


# The daemon.


class Watch:
    """When pods came and when their identity was Assigned, as the API's storage saw it."""

    def __init__(self, kubernetes: Kubernetes) -> None:
        self.created: dict[tuple[str, str], float] = {}
        self.assigned: dict[tuple[str, str], float] = {}
        self._storage = kubernetes.storage

    async def run(self) -> None:
        """Follow until cancelled."""
        async for event in self._storage.watch(ASSIGNED, None, self._storage.revision):
            spec, status = event.object["spec"], event.object.get("status") or {}
            if status.get("status") == "Assigned":
                self.assigned.setdefault((spec["podNamespace"], spec["pod"]), time.monotonic())

    def milliseconds(self, prefix: str) -> list[float]:
        """How long each pod waited, in order."""
        return sorted((self.assigned[key] - at) * 1e3 for key, at in self.created.items() if key[1].startswith(prefix))

    async def until_all(self, limit_seconds: float) -> None:
        """Return when every pod that came has its identity."""
        await until(lambda: len(self.assigned) >= len(self.created), limit_seconds)


async def measure(size: Size, patch_seconds: float) -> dict[str, float]:
    """Run MIC in a cluster of this size."""
    world, arm = worlds.World(Kubernetes(worlds.NoLogs()), worlds.Machines()), StandInArm()
    arm.patch_seconds, arm.retry_after = patch_seconds, "1"
    watch = Watch(world.kubernetes)
    with tempfile.TemporaryDirectory() as folder:
        async with worlds.served(world) as http, arm.listening():
            for definition in yaml.safe_load_all((ROOT / "deploy/infra/deployment-rbac.yaml").read_text()):
                if definition["kind"] == "CustomResourceDefinition":
                    await http.post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", json=definition)
            for number in range(size.scale_sets):
                arm.machine(make.target(f"ss-{number}"))
            identities, bindings = objects(size)
            nodes = [make.node(f"n-{number}", f"ss-{number % size.scale_sets}") for number in range(size.nodes)]
            world.add(*nodes, *identities, *bindings)
            following = asyncio.create_task(watch.run())
            async with running(world, arm, str(http.base_url), Path(folder)) as mic:
                figures = await act(size, world, arm, watch, mic)
            following.cancel()
    return figures | {"patch_s": patch_seconds}


async def act(
    size: Size, world: worlds.World, arm: StandInArm, watch: Watch, mic: asyncio.subprocess.Process
) -> dict[str, float]:
    """All pods at once, then lone ones while one scale set hangs."""
    cpu, requests = cpu_seconds(mic.pid), len(world.requests)
    for number in range(size.pods):
        create(world, watch, pod(size, number))
        if number % 50 == 0:
            await asyncio.sleep(0)
    last = time.monotonic()
    await watch.until_all(1200)
    figures: dict[str, float] = {
        "last_pod_to_all_assigned_s": round(max(watch.assigned.values()) - last, 2),
        "p50_ms": round(statistics.median(watch.milliseconds("p"))),
        "p99_ms": round(percentile(watch.milliseconds("p"), 99)),
        "cpu_s": round(cpu_seconds(mic.pid) - cpu, 2),
        "kubernetes_calls": len(world.requests) - requests,
        "gets": len(arm.calls("GET")),
        "patches": len(arm.calls("PATCH")),
        "identities_on_scale_sets": sum(len(machine.identities) for machine in arm.machines.values()),
    }
    cpu = cpu_seconds(mic.pid)
    figures |= await lone(size, world, arm, watch)
    figures["terms"] = await terms()  # more than one: the API server could not answer in time
    return figures | {"lone_cpu_s": round(cpu_seconds(mic.pid) - cpu, 2), "rss_mb": peak_mb(mic.pid)}


async def lone(size: Size, world: worlds.World, arm: StandInArm, watch: Watch) -> dict[str, float]:
    """One scale set hangs; pods come whose identity is where they are."""
    hanging = arm.machine(make.target("ss-0"))
    hanging.gate = asyncio.Event()
    before = len(arm.calls("PATCH"))
    world.add(make.identity("new", "team-0"), make.binding("new", "team-0", "new", "new"))
    world.add(make.pod("hangs", "team-0", node="n-0", selector="new"))
    await until(lambda: len(arm.calls("PATCH")) > before, 60)
    for number in range(LONE_PODS):
        create(world, watch, pod(size, number, "lone"))
        await asyncio.sleep(LONE_SECONDS)
    await watch.until_all(120)
    hanging.gate.set()
    waited = watch.milliseconds("lone")
    return {"lone_p50_ms": round(statistics.median(waited), 1), "lone_p99_ms": round(percentile(waited, 99), 1)}


async def terms() -> int:
    """How often MIC was elected: it reads everything anew each time."""
    async with httpx2.AsyncClient(trust_env=False) as http:
        page = (await http.get("http://127.0.0.1:18888/metrics")).text
    lines = [line for line in page.splitlines() if line.startswith("aadpodidentity_mic_new_leader_election_count ")]
    return int(float(lines[0].split()[1]))


def create(world: worlds.World, watch: Watch, made: Pod) -> None:
    """Create a pod that is scheduled already."""
    watch.created[made.key.namespace, made.key.name] = time.monotonic()
    world.add(made)


async def until(condition: Callable[[], bool], limit_seconds: float) -> None:
    """Return when `condition` has come true."""
    async with asyncio.timeout(limit_seconds):
        while not condition():  # noqa: ASYNC110  # it comes true in another process
            await asyncio.sleep(0.02)


def percentile(ordered: list[float], of: int) -> float:
    """Take a value from an ordered list."""
    return ordered[min(len(ordered) * of // 100, len(ordered) - 1)]


@contextlib.asynccontextmanager
async def running(
    world: worlds.World, arm: StandInArm, server: str, folder: Path
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run `podidentity mic` until it leads."""
    path, environ = arm.write_config(folder)
    (folder / "ca.pem").write_bytes(world.kubernetes.ca_pem)
    cluster = {"server": server, "certificate-authority": str(folder / "ca.pem")}
    kubeconfig = {
        "current-context": "lab",
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "admin"}}],
        "clusters": [{"name": "lab", "cluster": cluster}],
        "users": [{"name": "admin", "user": {"token": world.kubernetes.admin_token}}],
    }
    (folder / "kubeconfig").write_text(yaml.safe_dump(kubeconfig))
    flags = [f"--kubeconfig={folder / 'kubeconfig'}", f"--cloudconfig={path}", "--http-probe-port=18080"]
    command = [str(Path(sys.executable).parent / "podidentity"), "mic", *flags, "--prometheus-port=18888"]
    given: dict[str, Any] = {**os.environ, **environ, "MIC_POD_NAMESPACE": "default"}
    with (folder / "mic.log").open("wb") as log:
        mic = await asyncio.create_subprocess_exec(*command, env=given, stdout=log, stderr=log)
        try:
            await until(lambda: any("leases" in where and method == "POST" for method, where in world.requests), 30)
            yield mic
        except BaseException:
            print((folder / "mic.log").read_text()[-3000:], file=sys.stderr)
            raise
        finally:
            if mic.returncode is None:
                mic.terminate()
            await mic.wait()


def cpu_seconds(pid: int) -> float:
    """User and system time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_mb(pid: int) -> float:
    """The most memory that a process ever had resident, in megabytes."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return round(int(lines["VmHWM"].split()[0]) * 1024 / 1e6, 1)


if __name__ == "__main__":
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # MIC hangs up at the end
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
    raise SystemExit(main())
