"""Reads the lab for its page: the control socket as the commands do, and the Kubernetes API as kubectl does.

What the logs have already is read of all of them before any of it is taken: a request's steps stand in several logs.
Then each source goes on by itself, and asks again when something failed meanwhile: a page stays open while a cluster
starts, NMI is replaced or the API server starts again. Nothing here runs in the lab's process.
"""

import asyncio
import base64
import contextlib
import json
import os
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx2

from podidentity_lab.directory import Directory
from podidentity_lab.page import events
from podidentity_lab.page.feed import EVENTS_LIMIT, Feed
from podidentity_lab.page.overview import Objects, overview
from podidentity_lab.page.tails import Tail

LOG_SECONDS = 0.25
"""Between two looks at the log: so often at most a browser gets a batch."""
OVERVIEW_SECONDS = 1.0
RETRY_SECONDS = 1.0
HISTORY_SECONDS = 5.0
"""For what the logs have already. What is not here by then is taken as if it were new."""
TIMEOUT = httpx2.Timeout(30.0)
TAIL_LINES = 5_000
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


@dataclass(frozen=True, slots=True)
class Daemon:
    """A pod of NMI or of the broker that runs. `place` is NMI's node; of a broker it is the pod."""

    namespace: str
    name: str
    station: str
    place: str


class Sources:
    """What is read of one lab, into a feed."""

    def __init__(self, lab: Directory, feed: Feed) -> None:
        self._lab = lab
        self._feed = feed
        self._last_number = 0
        self._tails: dict[Daemon, Tail] = {}
        self._followers: dict[Daemon, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Read until the lab is gone."""
        async with _control(self._lab) as self._control, _kubernetes(self._lab) as self._kubernetes:
            await self._read_history()
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
        """Set fields of the faults, or clear all; return all. Raises `httpx2.HTTPError` when the lab does not."""
        method, content = ("DELETE", None) if fields is None else ("PATCH", dict(fields))
        faults: dict[str, Any] = await self._ask(method, "/azure/faults", content)
        return faults

    async def _ask(self, method: str, path: str, content: Any = None) -> Any:
        response = await self._control.request(method, path, json=content)
        return response.raise_for_status().json()

    async def _read_history(self) -> None:
        history: list[events.Event] = []

        async def read_log() -> None:
            with contextlib.suppress(*_FAILURES):
                history.extend(await self._read_log())

        async def read_daemon(daemon: Daemon) -> None:
            with contextlib.suppress(*_FAILURES):
                async for event in self._read_lines(daemon, {}):
                    history.append(event)  # noqa: PERF401  # each as it comes: the time may be over before the last

        with contextlib.suppress(*_FAILURES):
            async with asyncio.timeout(HISTORY_SECONDS):
                daemons = _daemons(await self._list(_PATHS["pods"]))
                await asyncio.gather(read_log(), *map(read_daemon, daemons))
        self._feed.begin(sorted(history, key=lambda event: event.time)[-EVENTS_LIMIT:])

    async def _read_log(self) -> list[events.Event]:
        """Return the events since the last look; those that the lab has forgotten meanwhile are counted."""
        entries = await self._ask("GET", f"/azure/log?after={self._last_number}")
        if entries:
            self._feed.count_unread(entries[0]["number"] - self._last_number - 1 if self._last_number else 0)
            self._last_number = entries[-1]["number"]
        return [events.of_entry(entry) for entry in entries]

    async def _follow_log(self) -> None:
        while True:
            with contextlib.suppress(*_FAILURES):
                self._feed.take(await self._read_log())
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
        self._follow_daemons(_daemons(objects.pods))
        status, document = await self._ask("GET", "/status"), await self._ask("GET", "/azure/state")
        self._feed.show_groups(overview(status, document["state"], objects))
        self._feed.show_faults(await self._ask("GET", "/azure/faults"))

    async def _list(self, path: str) -> list[Any]:
        response = await self._kubernetes.get(path, params={"limit": PAGE_LIMIT})
        return [] if response.is_error else response.json().get("items") or []

    def _follow_daemons(self, daemons: Sequence[Daemon]) -> None:
        """Follow the log of each NMI and broker that runs, and no other."""
        self._followers = {daemon: task for daemon, task in self._followers.items() if not task.done()}
        lasting = {*daemons, *self._followers}
        self._tails = {daemon: tail for daemon, tail in self._tails.items() if daemon in lasting}
        for daemon in daemons:
            if daemon not in self._followers:
                self._followers[daemon] = asyncio.create_task(self._follow_daemon(daemon))

    async def _follow_daemon(self, daemon: Daemon) -> None:
        with contextlib.suppress(*_FAILURES):
            async for event in self._read_lines(daemon, {"follow": "true"}):
                self._feed.take([event])
        await asyncio.sleep(RETRY_SECONDS)

    async def _read_lines(self, daemon: Daemon, query: Mapping[str, str]) -> AsyncIterator[events.Event]:
        """Yield the events of a daemon's lines that were not read before."""
        tail = self._tails.setdefault(daemon, Tail(TAIL_LINES))
        tail.rewind()
        path = f"/api/v1/namespaces/{daemon.namespace}/pods/{daemon.name}/log"
        parameters: dict[str, str | int] = {**query, "tailLines": TAIL_LINES}
        async with self._kubernetes.stream("GET", path, params=parameters, timeout=None) as response:
            response.raise_for_status()
            async for line in split(response.aiter_text(), lambda: self._feed.count_unread(1)):
                if not tail.take(line):
                    continue
                self._feed.count_omitted(events.omitted_lines(line))
                event = events.of_audit_line(line, daemon.station, daemon.place)
                if event is not None:
                    yield event


def _daemons(pods: Sequence[Mapping[str, Any]]) -> list[Daemon]:
    daemons = []
    for pod in pods:
        station = _station_of(pod)
        namespace, name = pod["metadata"].get("namespace", ""), pod["metadata"]["name"]
        if station and pod.get("status", {}).get("phase") == "Running":
            place = pod["spec"].get("nodeName", "") if station == events.NMI else f"{namespace}/{name}"
            daemons.append(Daemon(namespace, name, station, place))
    return daemons


def _station_of(pod: Mapping[str, Any]) -> str:
    """Return whose log a pod writes: NMI's, the broker's, or "". Its labels are those of this project's manifests."""
    labels = pod["metadata"].get("labels") or {}
    if labels.get("component") == "nmi":
        return events.NMI
    return events.BROKER if labels.get("app.kubernetes.io/name") == "podidentity-broker" else ""


async def split(chunks: AsyncIterator[str], give_up: Callable[[], None]) -> AsyncIterator[str]:
    """Yield lines; `give_up` is called for each one that is too long for an audit line, of which nothing is yielded."""
    start, is_too_long = "", False
    async for chunk in chunks:
        *lines, start = (start + chunk).split("\n")
        for line in lines:
            if not is_too_long:
                yield line
            is_too_long = False
        if len(start) > LINE_LIMIT:
            if not is_too_long:
                give_up()
            start, is_too_long = "", True


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
