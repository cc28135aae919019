"""What a warm token request costs NMI, beside Go's net/http and nginx serving the same bytes. `make bench` runs it.

Everything is in network namespaces of this process. Servers take turns within each round, so that whatever else the
machine does meanwhile concerns them alike; a ratio is taken within a round, then the median over rounds. Through the
redirect, each server is behind one of its own, made by the same code: what connection tracking and nat cost in the
server's system calls, they cost all. CPU is the server's process alone, counted by the kernel in nanoseconds; how much
of it the kernel itself took is what it was found doing at its ticks. The last line printed is one JSON object.
"""

import argparse
import contextlib
import functools
import json
import os
import shutil
import socket
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from podidentity.linux import interception, nftables
from system.load.crowd import HEAD, ROOT, Crowd, build_go, cpu_seconds, node_target, pin
from system.redirect.network import IMDS, NODE, Network
from system.redirect.node import until

IDENTITIES = 20
CONNECTIONS = 32
KINDS = ("known head", "new head")
PORTS = {"go": 8081, "nginx": 8082}
REDIRECTED = {"go": "169.254.169.253", "nginx": "169.254.169.252"}
"""Addresses like IMDS's, that pods are sent away from to the port above."""
FIRST_REQUESTS = 1000
CONNECTIONS_PER_POD = 250  # NMI lets one address have 256
IMDS_SECONDS = 0.5  # how long IMDS takes for a token that is asked for by all at once
BUDGET = {
    "known_head_over_go": 0.8,
    "new_head_over_go": 1.25,
    "pods_250_over_1": 1.1,  # "the same": what one run differs from the next by
    "p99_ms": 2.0,
    "rss_mib": 52.0,
    "imds_calls_for_1000_first_requests": 1,
}
"""The largest value that is within the budget of docs/performance.md."""


@dataclass(frozen=True)
class Server:
    """Something that answers, and its process."""

    name: str
    pid: int
    target: str


@dataclass(frozen=True)
class Run:
    """What one server did in one round."""

    micros: float
    user_micros: float
    """The part of it outside the kernel."""
    per_second: float
    p50_ms: float
    p99_ms: float
    cores: float
    """How busy it was: near 1 means that it, and not the load program, was the limit."""


def main() -> int:
    """Measure and print; exit status 1 when something is over its budget."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="how often each server is measured")
    parser.add_argument("--seconds", type=float, default=2.0, help="how long each time")
    parser.add_argument("--only", default="", help="loopback or redirect")
    chosen = parser.parse_args()
    figures = {
        f"{way}, {pods} pods": measure(way, pods, chosen.rounds, chosen.seconds)
        for way in ("loopback", "redirect")
        for pods in (1, 250)
        if chosen.only in {"", way}
    }
    over = over_budget(figures)
    print(json.dumps({"bench": "nmi", "figures": figures, "budget": BUDGET, "over": over, "within_budget": not over}))
    return 1 if over else 0


def measure(way: str, pods: int, rounds: int, seconds: float) -> dict[str, Any]:
    """Measure all servers, with so many pods on the node, reached as `way` says."""
    with tempfile.TemporaryDirectory() as directory, Network("bridge") as network, contextlib.ExitStack() as opened:
        crowd = opened.enter_context(Crowd(network, Path(directory)))
        sources = crowd.fill(pods, IDENTITIES, on_loopback=way == "loopback")
        crowd.start("--redirect=none" if way == "loopback" else "--anti-spoof=off")
        assert crowd.process is not None
        target = node_target() if way == "loopback" else f"{IMDS}:80"
        servers = [
            Server("nmi", crowd.process.pid, target),
            *opened.enter_context(references(crowd, crowd.answer(sources[0], target), redirected=way == "redirect")),
        ]
        for server in servers:  # fill the cache, warm up
            run(crowd, server, sources, 0.3)
        runs = []
        for number in range(rounds):
            runs.append(
                {f"{one.name}, {kind}": run(crowd, one, sources, seconds, kind) for one in servers for kind in KINDS}
            )
            print(f"{way}, {pods} pods, round {number + 1} of {rounds}: {brief(runs[-1])}", file=sys.stderr)
        told = summary(runs)
        told["rss_mib"] = round(crowd.resident_mib(), 1)
        told["imds_calls_for_1000_first_requests"] = first_requests(crowd, sources, target)
        return told


def run(crowd: Crowd, server: Server, sources: list[str], seconds: float, kind: str = "known head") -> Run:
    """Load one server and say what a request cost it."""
    before, ticks_before = cpu_seconds(server.pid), cpu_ticks(server.pid)
    flags = (f"-connections={CONNECTIONS}", f"-seconds={seconds}", f"-unique={kind == 'new head'}".lower())
    told = crowd.load(sources, *flags, target=server.target)
    used = cpu_seconds(server.pid) - before
    user, system = (now - then for now, then in zip(cpu_ticks(server.pid), ticks_before, strict=True))
    if told["statuses"] != {"200": told["requests"]} or told["failures"]:
        raise SystemExit(f"{server.name} did not answer every request: {told}; NMI says: {crowd.log()[-2000:]}")
    micros = used / told["requests"] * 1e6
    return Run(
        micros,
        micros * user / max(user + system, 1),
        told["requests"] / told["seconds"],
        told["p50_ms"],
        told["p99_ms"],
        used / told["seconds"],
    )


def first_requests(crowd: Crowd, sources: list[str], target: str) -> int:
    """Have pods of one identity ask for a token that nobody has, all at once while IMDS is slow: the calls to IMDS."""
    same = sources[::IDENTITIES]
    connections = min(FIRST_REQUESTS, len(same) * CONNECTIONS_PER_POD)
    before = len(crowd.imds.served.asked)
    crowd.imds.call(crowd.imds.served.hold, IMDS_SECONDS)
    flags = (f"-connections={connections}", f"-first={FIRST_REQUESTS // connections}")
    told = crowd.load(same, *flags, target=target, head=HEAD.replace("vault.azure.net", "first.example"))
    if told["statuses"] != {"200": FIRST_REQUESTS}:
        raise SystemExit(f"first requests: {told}")
    return len(crowd.imds.served.asked) - before


def cpu_ticks(pid: int) -> tuple[int, int]:
    """Hundredths of a second that a process was seen outside and inside the kernel, all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]), int(fields[12])  # proc_pid_stat(5): utime and stime, counted from the state


@contextlib.contextmanager
def references(crowd: Crowd, body: bytes, *, redirected: bool = False) -> Iterator[list[Server]]:
    """Run Go's net/http and nginx on the node, each on NMI's core, answering with `body`; reached as NMI is."""
    program = build_go(ROOT / "bench/reference/main.go", ROOT / "build/bench-reference")
    (crowd.directory / "body").write_bytes(body)
    commands = {"go": [str(program), f"-address={node_target(PORTS['go'])}", f"-body={crowd.directory / 'body'}"]}
    nginx = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin:{ROOT}/build/nginx/usr/sbin")
    if nginx:
        commands["nginx"] = [nginx, "-p", str(crowd.directory), "-c", str(nginx_settings(crowd.directory, body))]
    else:
        print("nginx is not here (make build/nginx); measuring without it", file=sys.stderr)
    processes = {
        name: crowd.network.node.popen(*command, env={"GOMAXPROCS": "1"}) for name, command in commands.items()
    }
    try:
        for name, process in processes.items():
            until(functools.partial(answers, crowd, PORTS[name]), f"{name} answers")
            pin(process.pid)
        yield [
            Server(name, process.pid, redirect(crowd, name) if redirected else node_target(PORTS[name]))
            for name, process in processes.items()
        ]
    finally:
        for process in processes.values():
            process.terminate()
            process.wait(10)


def redirect(crowd: Crowd, name: str) -> str:
    """Send pods that ask at an address of its own to a reference, as NMI sends them to itself: that address."""
    address = REDIRECTED[name]
    what = interception.Interception(address, 80, NODE, PORTS[name], ("eth0",), anti_spoof=False)
    table = replace(interception.redirect(what), name=f"bench_{name}")
    crowd.network.node.run(f"nft -f - <<END\n{nftables.render(table)}END")
    return f"{address}:80"


def answers(crowd: Crowd, port: int) -> bool:
    """Say whether somebody listens on a port of the node."""
    try:
        crowd.network.node.call(lambda: socket.create_connection((NODE, port), 1).close())
    except OSError:
        return False
    return True


def nginx_settings(directory: Path, body: bytes) -> Path:
    """Write nginx's configuration."""
    path = directory / "nginx.conf"
    text = (ROOT / "bench/nginx.conf").read_text()
    for name, value in (
        ("ADDRESS", node_target(PORTS["nginx"])),
        ("DIRECTORY", str(directory)),
        ("BODY", body.decode()),
    ):
        text = text.replace(name, value)
    path.write_text(text)
    return path


def summary(runs: list[dict[str, Run]]) -> dict[str, Any]:
    """Medians over the rounds, with the smallest and largest value of what the budget is about."""
    told: dict[str, Any] = {}
    for name in runs[0]:
        told[name] = {
            "cpu_micros": spread([one[name].micros for one in runs]),
            "user_micros": spread([one[name].user_micros for one in runs]),
            "system_micros": spread([one[name].micros - one[name].user_micros for one in runs]),
            "per_second": round(statistics.median(one[name].per_second for one in runs)),
            "p50_ms": round(statistics.median(one[name].p50_ms for one in runs), 2),
            "p99_ms": spread([one[name].p99_ms for one in runs]),
            "cores_busy": round(statistics.median(one[name].cores for one in runs), 2),
        }
    for kind in KINDS:
        for other in [name.partition(",")[0] for name in runs[0] if name.endswith(kind) and not name.startswith("nmi")]:
            ratios = [one[f"nmi, {kind}"].micros / one[f"{other}, {kind}"].micros for one in runs]
            told[f"nmi over {other}, {kind}"] = spread(ratios)
    return told


def spread(values: list[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {
        "median": round(statistics.median(values), 3),
        "least": round(min(values), 3),
        "most": round(max(values), 3),
    }


def brief(runs: dict[str, Run]) -> str:
    """One round in one line, for whoever waits."""
    return "; ".join(f"{name} {one.micros:.1f} us" for name, one in runs.items())


def over_budget(figures: dict[str, Any]) -> list[str]:
    """Name each figure that is over its budget."""
    found: dict[str, tuple[float, str]] = {}
    for setting, told in figures.items():
        found[f"{setting}: known head over go"] = told["nmi over go, known head"]["median"], "known_head_over_go"
        found[f"{setting}: new head over go"] = told["nmi over go, new head"]["median"], "new_head_over_go"
        found[f"{setting}: p99"] = told["nmi, known head"]["p99_ms"]["median"], "p99_ms"
        found[f"{setting}: RSS"] = told["rss_mib"], "rss_mib"
        calls = told["imds_calls_for_1000_first_requests"]
        found[f"{setting}: calls to IMDS"] = calls, "imds_calls_for_1000_first_requests"
    for way in {setting.partition(",")[0] for setting in figures}:
        many, one = (figures[f"{way}, {pods} pods"]["nmi over go, known head"]["median"] for pods in (250, 1))
        found[f"{way}: 250 pods over 1"] = many / one, "pods_250_over_1"
    return [f"{name}: {value:g} > {BUDGET[limit]:g}" for name, (value, limit) in found.items() if value > BUDGET[limit]]


if __name__ == "__main__":
    raise SystemExit(main())
