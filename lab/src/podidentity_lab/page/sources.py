"""Reads the lab for its page: the control socket as the commands do, and the Kubernetes API as kubectl does.

Nothing here runs in the lab's process. Each source goes on by itself, and asks again when something failed meanwhile:
a page stays open while a cluster starts, NMI is replaced or the API server starts again.
"""

import asyncio
import base64
import contextlib
import json
import os
import ssl
from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx2

from podidentity_lab.directory import Directory
from podidentity_lab.page import events
from podidentity_lab.page.feed import Feed
from podidentity_lab.page.overview import Objects, overview

LOG_SECONDS = 0.25
"""Between two looks at the log: so often at most a browser gets a batch."""
OVERVIEW_SECONDS = 1.0
RETRY_SECONDS = 1.0
TIMEOUT = httpx2.Timeout(30.0)
TAIL_LINES = 1_000
LINE_LIMIT = 65_536
"""Characters of a line that has no end yet: more of it is given up."""
PAGE_LIMIT = 500  # objects of a kind; a lab has rarely more
_GROUP = "/apis/aadpodidentity.k8s.io/v1"
_PATHS = {
    "pods": "/api/v1/pods",
    "identities": f"{_GROUP}/azureidentities",
    "bindings": f"{_GROUP}/azureidentitybindings",
    "assigned_identities": f"{_GROUP}/azureassignedidentities",
    "service_accounts": "/api/v1/serviceaccounts",
}
_FAILURES = (httpx2.HTTPError, OSError, ValueError, KeyError)


class Sources:
    """What is read of one lab, into a feed."""

    def __init__(self, lab: Directory, feed: Feed) -> None:
        self._lab = lab
        self._feed = feed
        self._followers: dict[tuple[str, str], asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Read until the lab is gone."""
        async with _control(self._lab) as self._control, _kubernetes(self._lab) as self._kubernetes:
            tasks = [asyncio.create_task(task) for task in (self._follow_log(), self._refresh())]
            try:
                while self._lab.is_alive():
                    finished_tasks, _ = await asyncio.wait(
                        tasks, timeout=RETRY_SECONDS, return_when=asyncio.FIRST_COMPLETED
                    )
                    for task in finished_tasks:  # only by a bug
                        task.result()
            finally:
                for task in (*tasks, *self._followers.values()):
                    task.cancel()
                await asyncio.gather(*tasks, *self._followers.values(), return_exceptions=True)

    async def set_faults(self, fields: Mapping[str, Any] | None) -> Mapping[str, Any]:
        """Set fields of the faults, or clear all; return all."""
        method, content = ("DELETE", None) if fields is None else ("PATCH", dict(fields))
        faults: dict[str, Any] = await self._ask(method, "/azure/faults", content)
        return faults

    async def _ask(self, method: str, path: str, content: Any = None) -> Any:
        response = await self._control.request(method, path, json=content)
        return response.raise_for_status().json()

    async def _follow_log(self) -> None:
        number = 0
        while True:
            with contextlib.suppress(*_FAILURES):
                entries = await self._ask("GET", f"/azure/log?after={number}")
                self._feed.take([events.of_entry(entry) for entry in entries])
                number = entries[-1]["number"] if entries else number
            self._feed.flush()
            await asyncio.sleep(LOG_SECONDS)

    async def _refresh(self) -> None:
        while True:
            with contextlib.suppress(*_FAILURES):
                await self.refresh()
            await asyncio.sleep(OVERVIEW_SECONDS)

    async def refresh(self) -> None:
        """Read what is there. Raises `httpx2.HTTPError` when the lab does not answer."""
        objects = Objects(**{name: await self._list(path) for name, path in _PATHS.items()})
        self._follow_daemons(objects)
        status, document = await self._ask("GET", "/status"), await self._ask("GET", "/azure/state")
        self._feed.show_groups(overview(status, document["state"], objects))
        self._feed.show_faults(await self._ask("GET", "/azure/faults"))

    async def _list(self, path: str) -> list[Any]:
        response = await self._kubernetes.get(path, params={"limit": PAGE_LIMIT})
        return [] if response.is_error else response.json().get("items") or []

    def _follow_daemons(self, objects: Objects) -> None:
        """Follow the log of each NMI and broker that runs, and no other."""
        for key in [key for key, task in self._followers.items() if task.done()]:
            del self._followers[key]
        for pod in objects.pods:
            station = _station_of(pod)
            key = (pod["metadata"].get("namespace", ""), pod["metadata"]["name"])
            if station and key not in self._followers and pod.get("status", {}).get("phase") == "Running":
                place = pod["spec"].get("nodeName", "") if station == events.NMI else "/".join(key)
                self._followers[key] = asyncio.create_task(self._follow_daemon(key, station, place))

    async def _follow_daemon(self, key: tuple[str, str], station: str, place: str) -> None:
        path = f"/api/v1/namespaces/{key[0]}/pods/{key[1]}/log"
        with contextlib.suppress(*_FAILURES):
            query: dict[str, str | int] = {"follow": "true", "tailLines": TAIL_LINES}
            async with self._kubernetes.stream("GET", path, params=query, timeout=None) as response:
                response.raise_for_status()
                async for line in _lines(response.aiter_text()):
                    event = events.of_audit_line(line, station, place)
                    if event is not None:
                        self._feed.take([event])
        await asyncio.sleep(RETRY_SECONDS)


def _station_of(pod: Mapping[str, Any]) -> str:
    """Return whose log a pod writes: NMI's, the broker's, or "". Its labels are those of this project's manifests."""
    labels = pod["metadata"].get("labels") or {}
    if labels.get("component") == "nmi":
        return events.NMI
    return events.BROKER if labels.get("app.kubernetes.io/name") == "podidentity-broker" else ""


async def _lines(chunks: AsyncIterator[str]) -> AsyncIterator[str]:
    """Yield lines; one that is too long for an audit line is given up."""
    start = ""
    async for chunk in chunks:
        *lines, start = (start + chunk).split("\n")
        start = start[:LINE_LIMIT]
        for line in lines:
            yield line


@contextlib.asynccontextmanager
async def _control(lab: Directory) -> AsyncIterator[httpx2.AsyncClient]:
    """Yield a client of the control socket. The kernel takes 107 bytes of a path, and a directory may be deep."""
    folder = os.open(lab.control.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    transport = httpx2.AsyncHTTPTransport(uds=f"/proc/self/fd/{folder}/{lab.control.name}")
    try:
        async with httpx2.AsyncClient(transport=transport, base_url="http://lab", timeout=TIMEOUT) as client:
            yield client
    finally:
        os.close(folder)


def _kubernetes(lab: Directory) -> httpx2.AsyncClient:
    """Return a client of the lab's Kubernetes, with what its kubeconfig says."""
    configuration = json.loads(lab.kubeconfig.read_text())
    cluster = configuration["clusters"][0]["cluster"]
    pem = base64.b64decode(cluster["certificate-authority-data"]).decode()
    headers = {"Authorization": f"Bearer {configuration['users'][0]['user']['token']}"}
    return httpx2.AsyncClient(
        base_url=cluster["server"],
        headers=headers,
        verify=ssl.create_default_context(cadata=pem),
        timeout=TIMEOUT,
        trust_env=False,  # the lab's own proxy variables would lead into the lab
    )
