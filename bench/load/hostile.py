"""A hostile pod that does everything bad at once over the network: `hostile.py NODE SECONDS [CLIENT [KINDS]]`.

Connections of every bad kind to where pods find IMDS, requests without waiting for answers, ever new resources and
paths (each of them a line in NMI's log), and a flood of NMI's own pages at the node's address. The standard library
alone: it runs in pods of a real cluster, too. CLIENT is the ID of a service principal of its own with an archive that
should not be opened. KINDS are the only kinds to use, separated by commas; all without it. METADATA in the environment
is an address in IMDS's place. The last line printed is one JSON object: how often each kind was begun.
"""

import asyncio
import collections
import contextlib
import json
import os
import sys

IMDS = (os.environ.get("METADATA", "169.254.169.254"), 80)
TOKEN_PATH = "/metadata/identity/oauth2/token?api-version=2018-02-01&resource="  # noqa: S105  # no secret
SHORT = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
PIPELINED = SHORT * (15_000 // len(SHORT))
KINDS = {"pipelining": 100, "reopening": 60, "silent": 60, "new resource": 20, "odd path": 10, "archive": 5, "page": 80}
"""How many of each are under way at any time."""
PAGES = ((8085, "/healthz"), (8085, "/readyz"), (9090, "/metrics"))
LIMIT_SECONDS = 10.0
PAUSE_SECONDS = 0.01
"""After each try: a program that only makes connections would be bounded by its own processor."""


class Neighbour:
    """One pod's program."""

    def __init__(self, node: str, client_id: str = "") -> None:
        self.node = node
        self.client_id = client_id
        self.attempts: collections.Counter[str] = collections.Counter()

    async def keep_at(self, kind: str) -> None:
        """Do one kind of thing again and again."""
        act = getattr(self, kind.replace(" ", "_"))
        while True:
            self.attempts[kind] += 1
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, TimeoutError):
                async with asyncio.timeout(LIMIT_SECONDS):
                    await act()
            await asyncio.sleep(PAUSE_SECONDS)

    async def pipelining(self) -> None:
        """Send far ahead of the answers."""
        reader, writer = await asyncio.open_connection(*IMDS)
        reading = asyncio.ensure_future(drained(reader))
        try:
            while not reading.done():
                writer.write(PIPELINED)
                await writer.drain()
                await asyncio.sleep(0)
        finally:
            reading.cancel()
            writer.transport.abort()

    async def reopening(self) -> None:
        """Ask once and reset the connection."""
        await self.ask(*IMDS, SHORT)

    async def silent(self) -> None:
        """Send a part of a head and nothing more."""
        reader, writer = await asyncio.open_connection(*IMDS)
        writer.write(SHORT[:-4])
        try:
            await reader.read()
        finally:
            writer.transport.abort()

    async def new_resource(self) -> None:
        """Ask for a token that nobody has asked for."""
        await self.ask(*IMDS, head(f"{TOKEN_PATH}https://{self.attempts['new resource']}.example"))

    async def archive(self) -> None:
        """Ask for a token for which NMI would have to open an archive."""
        await self.ask(*IMDS, head(f"{TOKEN_PATH}https://vault.azure.net&client_id={self.client_id}"))

    async def odd_path(self) -> None:
        """Ask for what is refused and logged."""
        await self.ask(*IMDS, head(f"/metadata/{self.attempts['odd path']}"))

    async def page(self) -> None:
        """Ask NMI for one of its own pages."""
        port, path = PAGES[self.attempts["page"] % len(PAGES)]
        await self.ask(self.node, port, head(path))

    async def ask(self, address: str, port: int, request: bytes) -> None:
        """Ask on a connection of its own, and read what comes first."""
        reader, writer = await asyncio.open_connection(address, port)
        try:
            writer.write(request)
            await reader.readuntil(b"\r\n\r\n")
        finally:
            writer.transport.abort()


async def drained(reader: asyncio.StreamReader) -> None:
    """Read until the end."""
    with contextlib.suppress(OSError):
        while await reader.read(1 << 20):
            pass


def head(target: str) -> bytes:
    """Return a request's head."""
    return f"GET {target} HTTP/1.1\r\nHost: 169.254.169.254\r\nMetadata: true\r\n\r\n".encode()


async def run(node: str, seconds: float, client_id: str = "", only: str = "") -> dict[str, int]:
    """Do everything for so many seconds; return how often each kind was begun."""
    neighbour = Neighbour(node, client_id)
    kinds = [kind for kind in KINDS if not only or kind in only.split(",")]
    tasks = [asyncio.ensure_future(neighbour.keep_at(kind)) for kind in kinds for _ in range(KINDS[kind])]
    await asyncio.sleep(seconds)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return neighbour.attempts


if __name__ == "__main__":
    print(json.dumps(asyncio.run(run(sys.argv[1], float(sys.argv[2]), *sys.argv[3:]))))
