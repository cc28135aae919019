"""How long a neighbour's cached token takes on a new connection while one pod uses 250 connections as it likes.

`python bench/load/pipelining.py [SECONDS]`: NMI's listener in a process of its own, under uvloop, with audit lines; one
client pipelines, or opens connections without end, from 127.0.0.2; the neighbour asks from 127.0.0.1. All on
loopback, without a redirect: what is compared is NMI with and without the other client, on one machine, in one run.
"""

import asyncio
import contextlib
import itertools
import multiprocessing
import os
import socket
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event

import uvloop

import make
from daemons.nmi.corpus import QUERY, TOKEN_PATH, request
from daemons.nmi.harness import ADDRESS, pod, serving

CONNECTIONS = 250
GREEDY = "127.0.0.2"
SHORT = b"GET / HTTP/1.1\r\nHost:a\r\n\r\n"
PIPELINED = SHORT * (15_000 // len(SHORT))
TOKEN = request(TOKEN_PATH + QUERY)
PAUSE_SECONDS = 0.01


def serve(ready: Connection) -> None:
    """Run NMI until the parent ends it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)

    async def act() -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with serving() as nmi:
                    nmi.cluster.add(pod(), make.identity())
                    await nmi.ask()
                    ready.send(nmi.port)
                    await asyncio.Event().wait()

    uvloop.run(act())


async def _pipeline(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    async def read() -> None:
        with contextlib.suppress(OSError):
            while await reader.read(1 << 20):
                pass

    reading = asyncio.ensure_future(read())
    while not reading.done():
        writer.write(PIPELINED)
        await asyncio.sleep(0)
        await writer.drain()


async def _reopen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(SHORT)
    await reader.readuntil(b"\r\n\r\n")
    writer.transport.abort()


async def _keep_asking(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(SHORT)
        await reader.readuntil(b"}")


def attack(port: int, kind: str, full_attack: Event) -> None:
    """Use 250 connections in one way, for ever. `full_attack` is set when so many were opened."""
    act = {"pipelining": _pipeline, "reopening": _reopen, "asking": _keep_asking}[kind]

    connection_numbers = itertools.count(1)

    async def repeat() -> None:
        while True:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                reader, writer = await asyncio.open_connection(ADDRESS, port, local_addr=(GREEDY, 0))
                if next(connection_numbers) == CONNECTIONS:
                    full_attack.set()
                await act(reader, writer)

    async def attack_on_all() -> None:
        await asyncio.gather(*(repeat() for _ in range(CONNECTIONS)))

    uvloop.run(attack_on_all())


def measure(port: int, seconds: float) -> list[float]:
    """Return the milliseconds that each of the neighbour's requests took, each on a new connection."""
    durations = []
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        start_time = time.perf_counter()
        with socket.create_connection((ADDRESS, port), timeout=60, source_address=(ADDRESS, 0)) as connection:
            connection.sendall(TOKEN)
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        durations.append((time.perf_counter() - start_time) * 1000)
        time.sleep(PAUSE_SECONDS)
    return durations


def start(target: Callable[..., None], *arguments: object) -> multiprocessing.Process:
    """Start a process that ends with this one."""
    process = multiprocessing.Process(target=target, args=arguments, daemon=True)
    process.start()
    return process


def main() -> None:
    """Measure without, and beside each kind."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 10.0
    for kind in ("nothing", "asking", "pipelining", "reopening"):
        ready, other = multiprocessing.Pipe()
        processes = [start(serve, other)]
        port = ready.recv()
        if kind != "nothing":
            full_attack = multiprocessing.Event()
            processes.append(start(attack, port, kind, full_attack))
            assert full_attack.wait(60), f"{kind}: not all of its {CONNECTIONS} connections were opened within a minute"
        durations = sorted(measure(port, seconds))
        p99 = durations[int(len(durations) * 0.99)]
        print(f"{kind:11} {len(durations):5} requests  p50 {statistics.median(durations):7.1f} ms  p99 {p99:7.1f} ms  "
              f"max {durations[-1]:7.1f} ms")  # fmt: skip
        for process in processes:
            process.terminate()


if __name__ == "__main__":
    main()
