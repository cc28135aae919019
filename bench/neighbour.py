"""What a hostile neighbour, doing everything at once, costs a pod of another namespace. `make bench` runs it.

NMI and MIC run as processes between the lab's Kubernetes API and stand-ins for ARM and IMDS. One pod asks for its
token every 10 ms, each time on a new connection through the real redirect; in other phases another pod of its node uses
connections, NMI's pages and its log as it likes (`load/hostile.py`), and its tenant creates nested objects, pods with
thousands of labels, identities times pods, and an archive of 2^31 rounds (`tests/cluster/tenant.py`). What counts is
the ratio of phases of one round.

What is measured is NMI, not who gets a processor: NMI has the first core, before whatever else runs there, and the
quiet pod asks from the same core, so that neither it nor its packets wait for the neighbour's processor. The neighbour,
MIC, the API and the stand-ins share the other one. NMI has no real-time priority: the kernel takes the processor from
such a process for 50 ms of each second in which it is busy throughout. Go's net/http takes NMI's place in two more
phases of each round, behind a redirect of its own and beside the same connections: what a server of one core costs its
quiet client then.
"""

import argparse
import collections
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from http import HTTPStatus
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import make
from cluster import tenant
from daemons.nmi.test_archives import with_most_rounds
from daemons.nmi.test_principals import make_pair
from podidentity.linux import interception, nftables
from podidentity.serving.nesting import allow_nested_objects
from processes import peak_mib
from results import percentile, print_result, spread
from system.load.crowd import ROOT, build_go
from system.load.whole import ASSIGNED, Whole
from system.redirect.network import NODE, PODS, Network
from system.redirect.node import exchange
from waiting import until

LOAD = Path(__file__).parent / "load"
RESOURCES = {
    "AzureIdentity": "azureidentities.aadpodidentity.k8s.io",
    "AzureIdentityBinding": "azureidentitybindings.aadpodidentity.k8s.io",
    "Pod": "pods",
    "Secret": "secrets",
}
IDENTITY = "quiet"
GO_ADDRESS, GO_PORT = "169.254.169.253", 8081
"""Where Go stands in for IMDS, and where it listens on the node."""
CONNECTIONS = "pipelining,reopening,silent,new resource,odd path,archive"
"""What the neighbour can do to any server: no objects, and no pages of NMI's."""
BEGIN_SECONDS = 10.0
"""Of a phase, told apart: the neighbour creates all its objects then."""
CORES = sorted(os.sched_getaffinity(0))
BUDGET = {"failed": 0.0, "restarts": 0.0, "p99_ratio": 2.0, "nmi_mib": 128.0, "mic_mib": 256.0}
"""The largest values that are within the budget of docs/performance.md; memory: half of the manifests' limits."""


@dataclass(frozen=True)
class Phase:
    """What the quiet pod saw during one phase."""

    milliseconds: list[float]
    seconds: list[float]
    """After how many seconds of the phase each was asked for."""
    failures: list[str]
    attempts: dict[str, int]
    """How often the neighbour did each kind of thing; empty in a quiet phase."""

    @property
    def figures(self) -> dict[str, Any]:
        """Return the figures of the phase."""
        ranks = {f"p{rank}_ms": round(percentile(self.milliseconds, rank), 2) for rank in (50, 99)}
        begin = sum(second < BEGIN_SECONDS for second in self.seconds)
        ranks["begin_p99_ms"] = round(percentile(self.milliseconds[:begin], 99), 2)
        counts = {"requests": len(self.milliseconds), "begun": self.attempts}
        return {**ranks, "most_ms": max(self.milliseconds), "slowest": self.slowest(), **counts}

    def slowest(self) -> dict[int, int]:
        """Return how many of the slowest hundredth were asked for in each second of the phase."""
        limit = percentile(self.milliseconds, 99)
        slow = [
            second
            for second, milliseconds in zip(self.seconds, self.milliseconds, strict=True)
            if milliseconds >= limit
        ]
        return dict(sorted(collections.Counter(map(int, slow)).items()))


Round = dict[str, Phase]
RATIOS = {"all": "quiet", "connections": "quiet", "go, connections": "go, quiet"}
"""Each phase beside a neighbour, and the quiet phase that it is compared with."""


def main() -> int:
    """Measure and print; exit status 1 when something is over its budget."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="how often all phases are measured")
    parser.add_argument(
        "--seconds", type=float, default=120.0, help="how long the neighbour does everything; other phases take a sixth"
    )
    parser.add_argument("--only", default="", help="what the neighbour does: kinds of hostile.py, or objects")
    options = parser.parse_args()
    allow_nested_objects()  # the lab's API, which is in this process, hands them out
    os.sched_setaffinity(0, set(CORES[1:] or CORES))
    with running() as node:
        rounds = [measure(node, number, options.seconds, options.only) for number in range(options.rounds)]
        memory = {name: round(peak_mib(process.pid), 1) for name, process in daemons(node).items()}
        dead = [name for name, process in daemons(node).items() if process.poll() is not None]
    nmi_phases = [phase for phases in rounds for name, phase in phases.items() if not name.startswith("go")]
    failures = [failure for phase in nmi_phases for failure in phase.failures]
    ratios = {name: ratio(rounds, name) for name in RATIOS}
    figures = {
        "rounds": [{name: phase.figures for name, phase in phases.items()} for phases in rounds],
        "p99 beside over without": ratios,
        "failures": failures[:5],
        "requests_beside": sum(len(phase.milliseconds) for phase in nmi_phases if phase.attempts),
        "failed": len(failures),
        "memory_mib": memory,
        "ended": dead,
    }
    values = {"failed": len(failures), "restarts": len(dead), "p99_ratio": ratios["all"]["median"]}
    return print_result("neighbour", figures, BUDGET, values | {f"{name}_mib": mib for name, mib in memory.items()})


def ratio(rounds: list[Round], name: str) -> dict[str, float]:
    """Return how much a phase's p99 is over that of the quiet phase of its round."""
    return spread([phases[name].figures["p99_ms"] / phases[RATIOS[name]].figures["p99_ms"] for phases in rounds], 2)


@contextlib.contextmanager
def running() -> Iterator[Whole]:
    """Run both daemons and the quiet pod, until it has its token; yield them."""
    with (
        tempfile.TemporaryDirectory() as directory,
        Network("bridge") as network,
        Whole(network, Path(directory)) as node,
    ):
        node.cluster.call(node.arm.machine, make.target("ss"))
        node.tell(make.node("n1", "ss"))
        node.tell_identity(IDENTITY)
        node.start_mic()
        node.start()
        assert node.process is not None
        prefer(node.process.pid)
        node.schedule("quiet", IDENTITY, address=PODS[0])
        node.until_assigned("quiet")
        until(lambda: node.ask(0)[0] == HTTPStatus.OK, "the first token")
        yield node


def prefer(pid: int) -> None:
    """Give a server the first core before all else; what it starts (nft, threads) gets it when nobody else wants it."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), {CORES[0]})
        os.sched_setscheduler(int(task.name), os.SCHED_OTHER | os.SCHED_RESET_ON_FORK, os.sched_param(0))
        os.setpriority(os.PRIO_PROCESS, int(task.name), -20)


@contextlib.contextmanager
def go_in_its_place(node: Whole) -> Iterator[None]:
    """Run Go's net/http, which answers everything with the quiet pod's token, behind a redirect like NMI's."""
    with node.connect(0) as connection:
        (node.directory / "body").write_text(json.dumps(exchange(connection)[1]))
    program = build_go(ROOT / "bench/reference/main.go", ROOT / "build/bench-reference")
    flags = (f"-address={NODE}:{GO_PORT}", f"-body={node.directory / 'body'}")
    process = node.network.node.popen(str(program), *flags, env={"GOMAXPROCS": "1"})
    rules = interception.Interception(GO_ADDRESS, 80, NODE, GO_PORT, ("eth0",), anti_spoof=False)
    table = replace(interception.redirect(rules), name="bench_go")
    node.network.node.run(f"nft -f - <<END\n{nftables.render(table)}END")
    try:
        until(lambda: node.network.node.run(f"ss -Hltn sport = :{GO_PORT}"), "Go listens")
        prefer(process.pid)
        yield
    finally:
        process.terminate()
        process.wait(10)
        node.network.node.run(f"nft delete table {table.family} {table.name}")


def measure(node: Whole, number: int, seconds: float, only: str) -> Round:
    """Measure all phases of a round. Go runs in its own ones alone: it goes on long after its clients have left."""
    namespace = f"hostile-{number}"
    go = {"METADATA": GO_ADDRESS}
    part = seconds / 6
    phases = {
        "quiet": phase(node, part),
        "connections": phase(node, part, hostile(node, namespace, part, CONNECTIONS)),
        "all": phase(node, seconds, full_attack(node, namespace, seconds, only)),
    }
    with go_in_its_place(node):
        phases["go, quiet"] = phase(node, part, environ=go)
        connections = hostile(node, namespace, part, CONNECTIONS, go)
        phases["go, connections"] = phase(node, part, connections, environ=go)
    for name, result in phases.items():
        print(f"round {number + 1}, {name}: {result.figures}", file=sys.stderr)
    node.cluster.call(remove, node, namespace)
    until(
        lambda: not node.cluster.call(count_assigned, node, namespace), "the neighbour's assigned identities to go", 120
    )
    return phases


def phase(
    node: Whole,
    seconds: float,
    neighbour: contextlib.AbstractContextManager[dict[str, int]] | None = None,
    environ: dict[str, str] | None = None,
) -> Phase:
    """Let the quiet pod ask for so many seconds, beside a neighbour or not."""
    with asking(node, environ or {}) as answer, neighbour or contextlib.nullcontext({}) as attempts:
        time.sleep(seconds)
    return Phase(**answer, attempts=attempts)


@contextlib.contextmanager
def asking(node: Whole, environ: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Let the quiet pod ask while the body runs; the yielded dictionary is filled at the end."""
    first = ("taskset", "-c", str(CORES[0]), "chrt", "--fifo", "2")
    command = [*first, sys.executable, str(LOAD / "quiet.py"), PODS[0], IDENTITY]
    process = node.network.pods[0].popen(*command, stdout=subprocess.PIPE, env=os.environ | environ)
    answer: dict[str, Any] = {}
    assert process.stdout is not None
    process.stdout.readline()
    try:
        yield answer
    finally:
        process.terminate()
        answer.update(json.loads(process.communicate(timeout=60)[0]))


@contextlib.contextmanager
def full_attack(node: Whole, namespace: str, seconds: float, only: str) -> Iterator[dict[str, int]]:
    """Let the neighbour's program run, and its tenant create objects."""
    with hostile(node, namespace, seconds, only) as attempts:
        if "objects" in (only or "objects"):
            node.cluster.call(create, node, namespace, with_most_rounds(make_pair(), node.directory))
        yield attempts


@contextlib.contextmanager
def hostile(
    node: Whole, namespace: str, seconds: float, only: str, environ: dict[str, str] | None = None
) -> Iterator[dict[str, int]]:
    """Let the neighbour's program run for so many seconds; the yielded dictionary is filled at the end."""
    node.cluster.call(add_program, node, namespace)
    command = [sys.executable, str(LOAD / "hostile.py"), NODE, str(seconds), tenant.CLIENT, *filter(None, [only])]
    process = node.network.pods[1].popen(*command, stdout=subprocess.PIPE, env=os.environ | (environ or {}))
    attempts: dict[str, int] = {}
    try:
        yield attempts
    finally:
        attempts.update(json.loads(process.communicate(timeout=seconds + 60)[0]))


def add_program(node: Whole, namespace: str) -> None:
    """Create the pod of the neighbour's program if it does not exist, on the API server's event loop."""
    storage = node.world.kubernetes.storage
    if any(obj["metadata"].get("namespace") == namespace for obj in storage.list("pods")):
        return
    pod = tenant.waiting_pod("program", "n1", {})
    pod["metadata"] |= {"namespace": namespace}
    pod["status"] = {"phase": "Running", "podIP": PODS[1], "podIPs": [{"ip": PODS[1]}]}
    storage.create("pods", pod)


def create(node: Whole, namespace: str, archive: bytes) -> None:
    """Create all objects of a tenant, on the API server's event loop."""
    storage = node.world.kubernetes.storage
    for _, body in tenant.requests("n1", archive, namespace):
        obj = json.loads(body)
        obj["metadata"]["namespace"] = namespace
        if obj["kind"] == "Pod":
            obj["status"] = {"phase": "Pending"}
        storage.create(RESOURCES[obj["kind"]], obj)


def remove(node: Whole, namespace: str) -> None:
    """Delete all objects of a tenant."""
    storage = node.world.kubernetes.storage
    for resource in RESOURCES.values():
        for obj in storage.list(resource):
            if obj["metadata"].get("namespace") == namespace:
                storage.delete(resource, namespace, obj["metadata"]["name"], grace_seconds=0)


def count_assigned(node: Whole, namespace: str) -> int:
    """Return how many assigned identities a namespace has."""
    identities = node.world.kubernetes.storage.list(ASSIGNED)
    return sum(obj["spec"]["podNamespace"] == namespace for obj in identities)


def daemons(node: Whole) -> dict[str, subprocess.Popen[bytes]]:
    """Return both daemons' processes."""
    assert node.process is not None
    assert node.mic is not None
    return {"nmi": node.process, "mic": node.mic}


if __name__ == "__main__":
    raise SystemExit(main())
