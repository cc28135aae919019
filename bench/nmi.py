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

from podidentity.linux import interception, nftables
from processes import cpu_seconds
from results import Value, print_result, spread
from system.load.crowd import HEAD, ROOT, Crowd, build_go, node_target, pin
from system.redirect.network import IMDS, NODE, Network
from waiting import until

IDENTITIES = 20
CONNECTIONS = 32
KINDS = ("known head", "new head")
PORTS = {"go": 8081, "nginx": 8082}
REDIRECTED = {"go": "169.254.169.253", "nginx": "169.254.169.252"}
"""Addresses like IMDS's; each reference has a redirect from one of them to its port above."""
FIRST_REQUESTS = 1000
CONNECTIONS_PER_POD = 250  # NMI lets one address have 256
IMDS_SECONDS = 0.5  # how long IMDS takes for a token that is asked for by all at once
BUDGET = {
    "known_head_over_go": 0.8,
    "new_head_over_go": 1.25,
    "pods_250_over_1": 1.1,  # "the same": one run differs from the next by as much
    "p99_over_go": 1.5,
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
    """How many cores it used: near 1 means that the server, and not the load program, was the limit."""


def main() -> int:
    """Measure and print; exit status 1 when something is over its budget."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="how often each server is measured")
    parser.add_argument("--seconds", type=float, default=1.0, help="how long each time")
    parser.add_argument("--only", default="", help="loopback or redirect")
    options = parser.parse_args()
    figures = {
        f"{way}, {pods} pods": measure(way, pods, options.rounds, options.seconds)
        for way in ("loopback", "redirect")
        for pods in (1, 250)
        if options.only in {"", way}
    }
    values = budget_values(figures)
    budget = {name: BUDGET[entry] for name, (_, entry) in values.items()}
    return print_result("nmi", figures, budget, {name: value for name, (value, _) in values.items()})


def measure(way: str, pods: int, rounds: int, seconds: float) -> dict[str, Any]:
    """Measure all servers, with so many pods on the node, reached as `way` says."""
    with tempfile.TemporaryDirectory() as directory, Network("bridge") as network, contextlib.ExitStack() as stack:
        crowd = stack.enter_context(Crowd(network, Path(directory)))
        sources = crowd.fill(pods, IDENTITIES, on_loopback=way == "loopback")
        crowd.start("--redirect=none" if way == "loopback" else "--anti-spoof=off")
        assert crowd.process is not None
        target = node_target() if way == "loopback" else f"{IMDS}:80"
        servers = [
            Server("nmi", crowd.process.pid, target),
            *stack.enter_context(references(crowd, crowd.answer(sources[0], target), redirected=way == "redirect")),
        ]
        for server in servers:  # fill the cache, warm up
            run(crowd, server, sources, 0.3)
        runs = []
        for number in range(rounds):
            runs.append(
                {
                    f"{server.name}, {kind}": run(crowd, server, sources, seconds, kind)
                    for server in servers
                    for kind in KINDS
                }
            )
            print(f"{way}, {pods} pods, round {number + 1} of {rounds}: {brief(runs[-1])}", file=sys.stderr)
        figures = summary(runs)
        figures["rss_mib"] = round(crowd.resident_mib(), 1)
        figures["imds_calls_for_1000_first_requests"] = first_requests(crowd, sources, target)
        return figures


def run(crowd: Crowd, server: Server, sources: list[str], seconds: float, kind: str = "known head") -> Run:
    """Load one server; return what a request cost it."""
    cpu_before, ticks_before = cpu_seconds(server.pid), cpu_ticks(server.pid)
    flags = (f"-connections={CONNECTIONS}", f"-seconds={seconds}", f"-unique={kind == 'new head'}".lower())
    report = crowd.load(sources, *flags, target=server.target)
    cpu_used = cpu_seconds(server.pid) - cpu_before
    user, system = (now - then for now, then in zip(cpu_ticks(server.pid), ticks_before, strict=True))
    if report["statuses"] != {"200": report["requests"]} or report["failures"]:
        raise SystemExit(f"{server.name} did not answer every request: {report}; NMI says: {crowd.log()[-2000:]}")
    micros = cpu_used / report["requests"] * 1e6
    return Run(
        micros,
        micros * user / max(user + system, 1),
        report["requests"] / report["seconds"],
        report["p50_ms"],
        report["p99_ms"],
        cpu_used / report["seconds"],
    )


def first_requests(crowd: Crowd, sources: list[str], target: str) -> int:
    """Have pods of one identity ask at once for a new token while IMDS is slow; return the calls to IMDS."""
    pods_of_one = sources[::IDENTITIES]
    connections = min(FIRST_REQUESTS, len(pods_of_one) * CONNECTIONS_PER_POD)
    calls_before = len(crowd.imds.served.requests)
    crowd.imds.call(crowd.imds.served.hold, IMDS_SECONDS)
    flags = (f"-connections={connections}", f"-first={FIRST_REQUESTS // connections}")
    report = crowd.load(pods_of_one, *flags, target=target, head=HEAD.replace("vault.azure.net", "first.example"))
    if report["statuses"] != {"200": FIRST_REQUESTS}:
        raise SystemExit(f"first requests: {report}")
    return len(crowd.imds.served.requests) - calls_before


def cpu_ticks(pid: int) -> tuple[int, int]:
    """Return for how many ticks of 10 ms a process was found outside and inside the kernel, all threads."""
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
    """Redirect pods that ask at an address of its own to a reference, as NMI redirects them; return that address."""
    address = REDIRECTED[name]
    rules = interception.Interception(address, 80, NODE, PORTS[name], ("eth0",), anti_spoof=False)
    table = replace(interception.redirect(rules), name=f"bench_{name}")
    crowd.network.node.run(f"nft -f - <<END\n{nftables.render(table)}END")
    return f"{address}:80"


def answers(crowd: Crowd, port: int) -> bool:
    """Return whether somebody listens on a port of the node."""
    try:
        crowd.network.node.call(lambda: socket.create_connection((NODE, port), 1).close())
    except OSError:
        return False
    return True


def nginx_settings(directory: Path, body: bytes) -> Path:
    """Write nginx's configuration; return its path."""
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
    """Return medians over the rounds, with the smallest and largest value of what the budget is about."""
    figures: dict[str, Any] = {}
    for name in runs[0]:
        figures[name] = {
            "cpu_micros": spread([entry[name].micros for entry in runs]),
            "user_micros": spread([entry[name].user_micros for entry in runs]),
            "system_micros": spread([entry[name].micros - entry[name].user_micros for entry in runs]),
            "per_second": round(statistics.median(entry[name].per_second for entry in runs)),
            "p50_ms": round(statistics.median(entry[name].p50_ms for entry in runs), 2),
            "p99_ms": spread([entry[name].p99_ms for entry in runs]),
            "cores_busy": round(statistics.median(entry[name].cores for entry in runs), 2),
        }
    for kind in KINDS:
        for other in [name.partition(",")[0] for name in runs[0] if name.endswith(kind) and not name.startswith("nmi")]:
            ratios = [entry[f"nmi, {kind}"].micros / entry[f"{other}, {kind}"].micros for entry in runs]
            figures[f"nmi over {other}, {kind}"] = spread(ratios)
            late = [entry[f"nmi, {kind}"].p99_ms / entry[f"{other}, {kind}"].p99_ms for entry in runs]
            figures[f"nmi p99 over {other}, {kind}"] = spread(late)
    return figures


def brief(runs: dict[str, Run]) -> str:
    """Return one round in one line, to be shown as progress."""
    return "; ".join(f"{name} {entry.micros:.1f} us" for name, entry in runs.items())


def budget_values(figures: dict[str, Any]) -> dict[str, tuple[Value, str]]:
    """Return what the budget is about, and which entry of `BUDGET` is about it."""
    values: dict[str, tuple[Value, str]] = {}
    for name, setting in figures.items():
        values[f"{name}: known head over go"] = setting["nmi over go, known head"], "known_head_over_go"
        values[f"{name}: new head over go"] = setting["nmi over go, new head"], "new_head_over_go"
        values[f"{name}: p99 over go"] = setting["nmi p99 over go, known head"], "p99_over_go"
        values[f"{name}: RSS"] = setting["rss_mib"], "rss_mib"
        calls = setting["imds_calls_for_1000_first_requests"]
        values[f"{name}: calls to IMDS"] = calls, "imds_calls_for_1000_first_requests"
    for way in {name.partition(",")[0] for name in figures}:
        many, single = (figures[f"{way}, {pods} pods"]["nmi over go, known head"]["median"] for pods in (250, 1))
        values[f"{way}: 250 pods over 1"] = many / single, "pods_250_over_1"
    return values


if __name__ == "__main__":
    raise SystemExit(main())
