"""What a cached token over the token proxy costs the broker, beside Go's net/http with TLS serving the same bytes.

`make bench` runs it: on plain loopback, on keep-alive connections and with a connection for each request, whose TLS
handshake is part of it; both servers on one core, the load program on another, turn by turn. Then the broker's memory
with 5,000 callers that it has not seen before.
"""

import argparse
import asyncio
import contextlib
import json
import os
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from broker_process import request
from processes import cpu_seconds, resident_mib
from results import print_result, spread
from serving import unused_port
from system.load.crowd import ROOT, build_go, load_program, pin
from waiting import until

CALLERS = 5000
CONNECTIONS = 32
WAYS = {"keep-alive": (), "new connections": ("-reopen",)}
BUDGET = {"keep_alive_over_go": 10.0, "new_connections_over_go": 5.0, "rss_mib_at_5000_callers": 100.0}
"""The largest value that is within the budget of docs/performance.md."""


@dataclass(frozen=True)
class Server:
    """Something that answers, its process, and where."""

    name: str
    pid: int
    port: int


def main() -> int:
    """Measure and print; exit status 1 when something is over its budget."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="how often each server is measured")
    parser.add_argument("--seconds", type=float, default=2.0, help="how long each time")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        folder = Path(directory)
        broker = stack.enter_context(serving_broker(folder))
        idle = round(resident_mib(broker.pid), 1)
        body = asyncio.run(ask(broker.port, 0, 1))
        go = stack.enter_context(serving_go(folder, body))
        figures = {
            way: measure(folder, (broker, go), options.rounds, (f"-seconds={options.seconds}", *flags))
            for way, flags in WAYS.items()
        }
        warm = round(resident_mib(broker.pid), 1)
        asyncio.run(ask(broker.port, 0, CALLERS))
        figures["memory"] = {"rss_mib_idle": idle, "rss_mib_warm": warm, "rss_mib": round(resident_mib(broker.pid), 1)}
    values = {
        "keep_alive_over_go": figures["keep-alive"]["broker over go"]["median"],
        "new_connections_over_go": figures["new connections"]["broker over go"]["median"],
        "rss_mib_at_5000_callers": figures["memory"]["rss_mib"],
    }
    return print_result("broker", figures, BUDGET, values)


def measure(folder: Path, servers: tuple[Server, ...], rounds: int, flags: tuple[str, ...]) -> dict[str, Any]:
    """Return CPU for each request of each server in microseconds, and the ratio within rounds."""
    runs: list[dict[str, tuple[float, dict[str, Any]]]] = []
    for number in range(rounds + 1):
        entry = {server.name: load(folder, server, flags) for server in servers}
        if number:  # the first round fills caches
            runs.append(entry)
    figures: dict[str, Any] = {
        server.name: {
            "cpu_micros": spread([entry[server.name][0] for entry in runs], 1),
            "p99_ms": spread([entry[server.name][1]["p99_ms"] for entry in runs], 2),
        }
        for server in servers
    }
    figures["broker over go"] = spread([entry["broker"][0] / entry["go"][0] for entry in runs])
    return figures


def load(folder: Path, server: Server, flags: tuple[str, ...]) -> tuple[float, dict[str, Any]]:
    """Ask for some seconds; return the server's CPU for each request, and the load program's report."""
    start = cpu_seconds(server.pid)
    command = [
        str(load_program()),
        f"-address=localhost:{server.port}",
        f"-head={folder}/request",
        f"-connections={CONNECTIONS}",
        "-tls",
        *flags,
    ]
    cores = sorted(os.sched_getaffinity(0))
    affinity = ["taskset", "-c", str(cores[-1])] if len(cores) > 1 else []
    output = subprocess.run([*affinity, *command], check=True, stdout=subprocess.PIPE, timeout=120).stdout
    report: dict[str, Any] = json.loads(output)
    if report["statuses"] != {"200": report["requests"]} or report["failures"]:
        raise SystemExit(f"not every request had its answer: {report}")
    return (cpu_seconds(server.pid) - start) / report["requests"] * 1e6, report


@contextlib.contextmanager
def serving_broker(folder: Path) -> Iterator[Server]:
    """Run the broker in a process of its own, on the first core."""
    command = [sys.executable, str(ROOT / "bench/broker_process.py"), str(folder)]
    log = (folder / "audit").open("wb")
    with log, subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log) as process:
        assert process.stdout is not None
        port = json.loads(process.stdout.readline())["port"]
        pin(process.pid)
        yield Server("broker", process.pid, port)
        assert process.stdin is not None
        process.stdin.close()
        process.wait(30)


@contextlib.contextmanager
def serving_go(folder: Path, body: bytes) -> Iterator[Server]:
    """Run Go's server with the same bytes, on the first core."""
    (folder / "body").write_bytes(body)
    port = unused_port()
    program = build_go(ROOT / "bench/reference/main.go", ROOT / "build/bench-reference")
    certificate = (f"-certificate={folder}/server.pem", f"-key={folder}/server.key")
    environ = {**os.environ, "GOMAXPROCS": "1"}
    command = [str(program), f"-address=localhost:{port}", f"-body={folder}/body", *certificate]
    with subprocess.Popen(command, env=environ, stderr=subprocess.DEVNULL) as process:
        pin(process.pid)
        until(lambda: asyncio.run(_answers(port)), "Go's server answers")
        yield Server("go", process.pid, port)
        process.terminate()


async def _answers(port: int) -> bool:
    try:
        return bool(await ask(port, 0, 1))
    except OSError:
        return False


async def ask(port: int, first: int, count: int) -> bytes:
    """Ask with tokens of so many callers on one connection; return the last answer's body."""
    tls = ssl.create_default_context()
    tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    reader, writer = await asyncio.open_connection("localhost", port, ssl=tls)
    body = b""
    for number in range(first, first + count):
        writer.write(request(number))
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise SystemExit(f"not every request had its answer: {head!r}")
        length = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))
        body = await reader.readexactly(int(length.split(b":")[1]))
    writer.close()
    return body


if __name__ == "__main__":
    raise SystemExit(main())
