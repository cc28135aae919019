"""What the nodes of a cluster cost a real API server: its CPU for each pod that starts, its memory for each node.

kube-apiserver and its etcd run on loopback, anew for each phase (`make cluster-ready` builds them), and MIC as a
process beside them. The watches are NMI's: it runs here until all are open, with its own role or with that of
aad-pod-identity's, and `load/watches.py` opens the same for as many nodes. Then pods come at a steady pace: each is
created on a node and reported as running, MIC assigns its identity, and every watch is told what concerns it. From the
API server's CPU meanwhile, what it took in the quiet before is subtracted. There are no kubelets, whose own watches
grow with the nodes likewise.
"""

import argparse
import asyncio
import contextlib
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import uvloop
import yaml

import clusters
import make
import mic
from daemons.mic import conftest as worlds
from daemons.mic.arm import StandInArm
from podidentity.core.model import machine_state
from podidentity.kube.api import Api
from podidentity.kube.connection import find_cluster, open_client
from podidentity.nmi.adapters.cluster import Cluster
from podidentity.nmi.settings import Settings
from processes import command_lines, cpu_seconds, resident_mib
from results import print_result
from waiting import eventually

WATCHES = Path(__file__).parent / "load" / "watches.py"
RECORDED_NODE = "recorded"
RBAC = "/apis/rbac.authorization.k8s.io/v1"
UPSTREAM_NMI = "upstream-nmi"
SCALE_SETS, IDENTITIES, NODES_WITH_PODS = 20, 20, 400
SETTLING_SECONDS, LIMIT_SECONDS = 15.0, 1800.0
QUIET_SECONDS = 60.0
"""An API server sends each watch a bookmark every minute, whatever happens: a shorter quiet has none of them, and what
they cost would count for the pods."""
SPARE_FILES = 500  # the API server's own, and those of MIC's connections
BUDGET = {"cpu_over_no_nodes": 1.2, "memory_for_a_node_kb": 150.0}
"""The largest values that are within the budget: with the most nodes, by NMI's own decision."""


@dataclass(frozen=True)
class Way:
    """How NMI knows what a pod has: its name, and how many watches that takes. `user` is who it is; empty: admin."""

    name: str
    watches: int
    user: str = ""


DECIDING = Way("own decision", 5)
BY_LABEL = Way("assigned identities by label", 3, UPSTREAM_NMI)


def main() -> int:
    """Measure and print; exit status 1 when something is over its budget."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", default="0,1000,4000", help="how many, separated by commas; 0 comes last again")
    parser.add_argument("--old-nodes", default="4000", help="the same for the old way; empty: without it")
    parser.add_argument("--pods", type=int, default=1000)
    parser.add_argument("--per-second", type=float, default=10.0, help="pods")
    parser.add_argument(
        "--http2", action="store_true", help="each node's watches on one connection, which NMI does not do"
    )
    options = parser.parse_args()
    phases = [(DECIDING, int(number)) for number in options.nodes.split(",")]
    phases += [(BY_LABEL, int(number)) for number in options.old_nodes.split(",") if number]
    figures: dict[str, Any] = {"pods": options.pods, "http2": options.http2}
    for way, nodes in [*phases, (DECIDING, 0)]:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            result = runner.run(Phase(way, nodes, options).run())
        results = figures.setdefault(way.name, {})
        results[f"{nodes} again" if str(nodes) in results else str(nodes)] = result
        print(f"{way.name}, {nodes} nodes: {result}", file=sys.stderr, flush=True)
    return print_result("fleet", figures, BUDGET, budget_values(figures))


def budget_values(figures: dict[str, Any]) -> dict[str, float]:
    """Return what the budget is about. Without nodes is measured first and last: the machine may do more meanwhile."""
    results = figures[DECIDING.name]
    empty = [result["cpu_ms_for_a_pod"] for result in results.values() if not result["nodes"]]
    largest = max(results.values(), key=lambda result: result["nodes"])
    return {
        "cpu_over_no_nodes": round(largest["cpu_ms_for_a_pod"] / statistics.mean(empty), 3),
        "memory_for_a_node_kb": largest["memory_for_a_node_kb"],
    }


class Phase:
    """One API server with the watches of so many nodes."""

    def __init__(self, way: Way, nodes: int, options: argparse.Namespace) -> None:
        self._way = way
        self._nodes = nodes
        self._options = options

    async def run(self) -> dict[str, Any]:
        """Measure."""
        arm = StandInArm()
        for number in range(SCALE_SETS):
            arm.machine(make.target(f"ss-{number}"))
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            async with (
                arm.listening(),
                clusters.real(folder) as (cluster, kubeconfig),
                open_client(find_cluster(kubeconfig)) as http,
                mic.running(arm, kubeconfig, folder),
            ):
                await populate(cluster)
                watch = mic.Watch(cluster)
                await self._start_pods(http, "warm", IDENTITIES * 2, watch)
                return await self._measure(http, kubeconfig, watch)

    async def _measure(self, http: httpx2.AsyncClient, kubeconfig: str, watch: mic.Watch) -> dict[str, Any]:
        server, result = pid_of_server(kubeconfig), {}
        nodes = self._fitting()
        await asyncio.sleep(SETTLING_SECONDS / 3)
        memory = resident_mib(server)
        async with self._watches(nodes, kubeconfig) as program:
            await asyncio.sleep(SETTLING_SECONDS)
            if nodes:
                result["memory_for_a_node_kb"] = round((resident_mib(server) - memory) * 2**20 / 1e3 / nodes, 1)
            cpu, start = cpu_seconds(server), time.monotonic()
            await asyncio.sleep(QUIET_SECONDS)
            quiet = (cpu_seconds(server) - cpu) / (time.monotonic() - start)
            cpu, start = cpu_seconds(server), time.monotonic()
            await self._start_pods(http, "p", self._options.pods, watch)
            seconds = time.monotonic() - start
            busy_seconds = cpu_seconds(server) - cpu - quiet * seconds
            if program is not None:
                result |= await ask(program)
        milliseconds = watch.milliseconds("p-")
        return result | {
            "nodes": nodes,
            "cpu_ms_for_a_pod": round(busy_seconds * 1e3 / self._options.pods, 2),
            "quiet_cpu_percent": round(quiet * 100, 1),
            "pods_s": round(seconds, 1),
            "assigned_p50_ms": round(statistics.median(milliseconds)),
            "load": round(os.getloadavg()[0], 1),
        }

    def _fitting(self) -> int:
        """Return how many nodes' connections the API server may have open."""
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[1] - SPARE_FILES
        return min(self._nodes, files // (1 if self._options.http2 else self._way.watches))

    async def _start_pods(self, http: httpx2.AsyncClient, prefix: str, count: int, watch: mic.Watch) -> None:
        """Start pods at the pace of the options; return when each has its identity."""
        start = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            for number in range(count):
                tasks.create_task(start_pod(http, f"{prefix}-{number}", number, watch))
                await asyncio.sleep(start + (number + 1) / self._options.per_second - time.monotonic())
        await watch.until_all(LIMIT_SECONDS)

    @contextlib.asynccontextmanager
    async def _watches(self, nodes: int, kubeconfig: str) -> AsyncIterator[asyncio.subprocess.Process | None]:
        """Open the watches of so many nodes, if any."""
        if not nodes:
            yield None
            return
        task = {
            **access_to(kubeconfig),
            "nodes": nodes,
            "scale_sets": SCALE_SETS,
            "machines": [machine_name(f"ss-{number}") for number in range(SCALE_SETS)],
            "watches": await record(kubeconfig, self._way),
            "is_multiplexed": self._options.http2,
        }
        command = ["setpriv", "--pdeathsig=KILL", "--", sys.executable, str(WATCHES)]
        program = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        try:
            assert program.stdin is not None
            assert program.stdout is not None
            program.stdin.write(json.dumps(task).encode() + b"\n")
            async with asyncio.timeout(LIMIT_SECONDS):
                assert await program.stdout.readline() == b"open\n", "the watches did not open"
            yield program
        finally:
            if program.returncode is None:
                program.kill()
            await program.wait()


async def populate(cluster: clusters.Cluster) -> None:
    """Create nodes, identities and bindings."""
    numbers = range(IDENTITIES)
    await cluster.create(make.node(f"n-{number}", f"ss-{number % SCALE_SETS}") for number in range(NODES_WITH_PODS))
    await cluster.create([make.node(RECORDED_NODE, "ss-0")])
    await cluster.create(make.identity(f"id-{number}") for number in numbers)
    await cluster.create(make.binding(f"b-{number}", "default", f"id-{number}", f"s-{number}") for number in numbers)


async def start_pod(http: httpx2.AsyncClient, name: str, number: int, watch: mic.Watch) -> None:
    """Create a pod on a node, and report it as a kubelet does once its containers run."""
    pod = make.pod(name, node=f"n-{number * 7 % NODES_WITH_PODS}", selector=f"s-{number % IDENTITIES}")
    _, body = worlds.rendered(pod)
    body["spec"]["containers"] = [{"name": "main", "image": "none"}]
    watch.note_created(*pod.key)
    path = "/api/v1/namespaces/default/pods"
    (await http.post(path, json=body)).raise_for_status()
    address = f"10.{number // 62500}.{number // 250 % 250}.{number % 250 + 1}"
    status = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}
    headers = {"Content-Type": "application/merge-patch+json"}
    patch = json.dumps({"status": status})
    (await http.patch(f"{path}/{name}/status", content=patch, headers=headers)).raise_for_status()


async def record(kubeconfig: str, way: Way) -> list[str]:
    """Return the requests with which NMI opens its watches, with placeholders for its node and its machine."""
    targets: dict[str, str] = {}

    async def note(request: httpx2.Request) -> None:
        if request.url.params.get("watch") == "true":
            target = request.url.raw_path.decode()
            targets[request.url.path] = target.replace(RECORDED_NODE, "{node}").replace(
                machine_name("ss-0"), "{machine}"
            )

    async with open_client(find_cluster(kubeconfig)) as http:
        if way.user:
            await give_upstream_role(http)
            http.headers["Impersonate-User"] = way.user
        http.event_hooks["request"].append(note)
        running = asyncio.create_task(Cluster(Api(http), Settings(RECORDED_NODE)).run())
        await eventually(lambda: len(targets) == way.watches, f"{way.name}: {way.watches} watches")
        running.cancel()
    return list(targets.values())


async def give_upstream_role(http: httpx2.AsyncClient) -> None:
    """Let `UPSTREAM_NMI` read what aad-pod-identity's NMI reads in standard mode."""
    kinds = {"": ["pods"], "aadpodidentity.k8s.io": ["azureassignedidentities", "azurepodidentityexceptions"]}
    rules = [
        {"apiGroups": [group], "resources": names, "verbs": ["get", "list", "watch"]} for group, names in kinds.items()
    ]
    role = {"metadata": {"name": UPSTREAM_NMI}, "rules": rules}
    (await http.post(f"{RBAC}/clusterroles", json=role)).raise_for_status()
    group = "rbac.authorization.k8s.io"
    binding = {
        "metadata": {"name": UPSTREAM_NMI},
        "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": UPSTREAM_NMI},
        "subjects": [{"apiGroup": group, "kind": "User", "name": UPSTREAM_NMI}],
    }
    (await http.post(f"{RBAC}/clusterrolebindings", json=binding)).raise_for_status()


async def ask(program: asyncio.subprocess.Process) -> dict[str, Any]:
    """Return what the watches brought. Raises AssertionError when one ended: then they were not measured."""
    assert program.stdin is not None
    assert program.stdout is not None
    program.stdin.write(b"\n")
    line = json.loads(await program.stdout.readline())
    assert not line["ended"], f"{line['ended']} watches ended"
    return {"connections": line["connections"], "received_kb": round(line["bytes"] / 1e3)}


def machine_name(scale_set: str) -> str:
    """Return the name of MIC's object about a scale set."""
    node = make.node("any", scale_set)
    return machine_state.object_name(machine_state.published_target(node.name, node.provider_id))


def pid_of_server(kubeconfig: str) -> int:
    """Return the process of the API server of a kubeconfig."""
    word = f"--secure-port={server_of(kubeconfig)[1]}"
    pids = [pid for pid, words in command_lines().items() if word.encode() in words]
    assert pids, f"no process has {word}"
    return pids[0]


def access_to(kubeconfig: str) -> dict[str, Any]:
    """Return what `load/watches.py` needs to know of it."""
    access = yaml.safe_load(Path(kubeconfig).read_text())
    ca, token = access["clusters"][0]["cluster"]["certificate-authority"], access["users"][0]["user"]["token"]
    return {"server": server_of(kubeconfig), "ca": ca, "token": token}


def server_of(kubeconfig: str) -> tuple[str, int]:
    """Return the address of a kubeconfig's API server."""
    url = httpx2.URL(yaml.safe_load(Path(kubeconfig).read_text())["clusters"][0]["cluster"]["server"])
    assert url.port is not None
    return url.host, url.port


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    raise SystemExit(main())
