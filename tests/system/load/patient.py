"""A client that repeats refused requests as SDKs do, and counts.

It needs the standard library alone, since it is also the program of a soak's pods. As a program it asks PER_SECOND
times a second on CONNECTIONS connections for SECONDS, for the resources below. It checks that each token is of the
identity OWN (a client ID) and for the resource that it asked for, and serves its counts on port 8080. After FRESH
requests a connection is replaced by a new one.
"""

import asyncio
import base64
import json
import os
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

IMDS = "169.254.169.254"
GIVE_UP_SECONDS = 60.0
AGAIN_SECONDS = 0.05
FRESH = 8
RESOURCES = 10
TARGET = "/metadata/identity/oauth2/token?api-version=2018-02-01&resource="


class Client:
    """A connection, which is replaced when it has ended. `address` is the client's own, where it must choose one."""

    def __init__(self, address: str | None = None) -> None:
        self._local = (address, 0) if address else None
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, target: str) -> tuple[int, dict[str, Any]]:
        """Ask once. Raises OSError or IncompleteReadError when the connection ends without an answer."""
        if self._streams is None:
            self._streams = await asyncio.open_connection(IMDS, 80, local_addr=self._local)
        reader, writer = self._streams
        writer.write(f"GET {target} HTTP/1.1\r\nHost: {IMDS}\r\nMetadata: true\r\n\r\n".encode())
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        body = await reader.readexactly(int(head.partition(b"content-length: ")[2].split(b"\r\n")[0]))
        if b"connection: close" in head:
            self.hang_up()
        return int(head.split(b" ")[1]), json.loads(body)

    def hang_up(self) -> None:
        """Close the connection."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


@dataclass
class Patience:
    """Requests a token until there is one.

    `again` counts the refusals after which it asked again, by status; `broken` counts broken connections.
    """

    again: dict[int, int] = field(default_factory=dict)
    broken: int = 0

    async def insist(self, client: Client, target: str) -> dict[str, Any] | None:
        """Ask until there is a token and return the answer; None when there is none in time."""
        gives_up = time.monotonic() + GIVE_UP_SECONDS
        while time.monotonic() < gives_up:
            try:
                async with asyncio.timeout(GIVE_UP_SECONDS):
                    status, fields = await client.ask(target)
            except (OSError, asyncio.IncompleteReadError, TimeoutError):
                self.broken += 1
                client.hang_up()
            else:
                if status == 200:
                    return fields
                self.again[status] = self.again.get(status, 0) + 1
            await asyncio.sleep(AGAIN_SECONDS)
        return None


class Pod:
    """What a pod of a soak does and what it has seen. Times are counted in milliseconds, to 0.01 ms."""

    def __init__(self, own: str) -> None:
        self._own = own
        self._owners: dict[str, str] = {}
        self.patience = Patience()
        self.times: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.lost: list[str] = []
        self.over = False

    async def ask(self, client: Client, resource: str) -> None:
        """Ask for one token and judge it."""
        began = time.monotonic()
        answer = await self.patience.insist(client, TARGET + resource)
        self.times[f"{(time.monotonic() - began) * 1e3:.2f}"] += 1
        if answer is None:
            self.lost.append(f"{self._own} for {resource}")
            return
        if len(self._owners) > 2 * RESOURCES:
            self._owners.clear()
        token = answer["access_token"]
        got = self._owners[token] = self._owners.get(token) or _owner(token)
        if got != f"{self._own} for {resource}":
            self.wrong.append(f"{self._own} for {resource} got {got}")

    async def keep_asking(self, number: int, ends: float, every: float) -> None:
        """Ask until the time is over, on one connection after the other."""
        due, client, count = time.monotonic() + every * number / 8, Client(), number
        while due < ends:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            due += every
            count += 1
            await self.ask(client, f"https://r{count % RESOURCES}.vault.azure.net")
            if count % FRESH == 0:
                client.hang_up()
        client.hang_up()

    def told(self) -> dict[str, Any]:
        """Return what the client has seen so far."""
        return {
            "over": self.over,
            "again": self.patience.again,
            "broken": self.patience.broken,
            "wrong": self.wrong,
            "lost": self.lost,
            "times": self.times,
        }

    async def tell(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve the counts on port 8080."""
        await reader.readuntil(b"\r\n\r\n")
        body = json.dumps(self.told()).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()
        writer.close()


def _owner(token: str) -> str:
    payload = token.split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return f"{claims['appid']} for {claims['aud']}"


async def main() -> None:
    """Ask, and serve the counts afterwards; without CONNECTIONS, ask once, print the outcome and end."""
    pod, connections = Pod(os.environ["OWN"]), int(os.environ.get("CONNECTIONS", "0"))
    if not connections:
        await pod.ask(Client(), "https://r0.vault.azure.net")
        sys.stdout.write(f"{json.dumps(pod.told())}\n")
        return
    server = await asyncio.start_server(pod.tell, "", 8080)
    ends = time.monotonic() + float(os.environ["SECONDS"])
    every = connections / float(os.environ["PER_SECOND"])
    async with asyncio.TaskGroup() as tasks:
        for number in range(connections):
            tasks.create_task(pod.keep_asking(number, ends, every))
    pod.over = True
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
