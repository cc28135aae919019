"""What browsers are sent: batches of trails, the overview, the faults. Bounded on every side.

However much happens, a browser gets a few batches a second, each with a bounded number of rows and with the totals so
far, from which the browser tells how many it has no row for. For a browser that does not read as fast, batches that
wait are dropped: the totals of the next one count what was in them.
"""

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from podidentity_lab.page import faults, overview, rendering
from podidentity_lab.page.events import Event
from podidentity_lab.page.overview import Group
from podidentity_lab.page.trails import Trail, Trails

ROWS_LIMIT = 100
"""Rows of a batch, and of a page when it is loaded."""
EVENTS_LIMIT = 10_000
"""Events that are remembered for the download, and that may wait for the next batch."""
QUEUE_LIMIT = 8
READERS_LIMIT = 16
CLOSING_TURNS = 100  # of the event loop
IDLE_SECONDS = 15.0
"""After so long without news a comment is sent, by which a browser that is gone is noticed."""


@dataclass(slots=True)
class Totals:
    """What has happened since the page is served: requests, and refusals of requests.

    `unread` answers were in a log and could not be read from it in time; `omitted` lines NMI did not write.
    """

    requests: int = 0
    refusals: int = 0
    unread: int = 0
    omitted: int = 0


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows by the numbers of their trails, as a server-sent event."""

    rows: Sequence[tuple[int, str]]
    totals: Mapping[str, int]

    def message(self) -> str:
        """Return it as a server-sent event."""
        return _message("batch", {"rows": self.rows, **self.totals})


@dataclass(frozen=True, slots=True)
class Change:
    """Parts of the overview, or the faults: the latest of each counts."""

    name: str
    content: Mapping[str, Any]

    def message(self) -> str:
        """Return it as a server-sent event."""
        return _message(self.name, self.content)


@dataclass(eq=False)
class Reader:
    """One browser, and what waits for it."""

    queue: deque[Batch | Change] = field(default_factory=deque)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def enqueue(self, item: Batch | Change) -> None:
        """Queue an item; when the queue is full, batches in it are dropped and changes become one of each name."""
        if len(self.queue) >= QUEUE_LIMIT:
            contents: dict[str, dict[str, Any]] = {}
            for entry in self.queue:
                if isinstance(entry, Change):
                    contents.setdefault(entry.name, {}).update(entry.content)
            self.queue = deque(Change(name, content) for name, content in contents.items())
        self.queue.append(item)
        self.news.set()


class Feed:
    """Takes events, makes trails of them and sends both to whoever reads."""

    def __init__(self) -> None:
        self.trails = Trails()
        self.totals = Totals()
        self.groups: Sequence[Group] = overview.EMPTY
        self.faults: Mapping[str, Any] = faults.DEFAULTS
        self.first_look = asyncio.Event()
        self.last_events: deque[Event] = deque(maxlen=EVENTS_LIMIT)
        self._arrivals: deque[Event] = deque(maxlen=EVENTS_LIMIT)
        self._earlier_arrivals: deque[Event] = deque()
        self._sent_totals = Totals()
        self._first_number = self.trails.next_number
        self._readers: set[Reader] = set()
        self._is_closed = False

    def begin(self, history: Sequence[Event]) -> None:
        """Take what was logged before the page was opened, the oldest first. It is shown and not counted."""
        self.last_events.extend(history)
        for event in history:
            trail = self.trails.add(event)
            trail.was_refused = trail.refusal is not None
        self._first_number = self.trails.next_number

    def take(self, events: Sequence[Event]) -> None:
        """Take events in any order; they are sent by `flush`."""
        self.count_unread(max(0, len(self._arrivals) + len(events) - EVENTS_LIMIT))
        self._arrivals.extend(events)
        self.last_events.extend(events)

    def count_unread(self, answers: int) -> None:
        """Count answers that nobody will see."""
        self.totals.unread += answers

    def count_omitted(self, lines: int) -> None:
        """Count lines that NMI left out."""
        self.totals.omitted += lines

    def flush(self) -> None:
        """Send a batch of the events that came before the last flush: by now those of other logs are here, too."""
        arrivals, self._earlier_arrivals, self._arrivals = (
            self._earlier_arrivals,
            self._arrivals,
            deque(maxlen=EVENTS_LIMIT),
        )
        changes: dict[int, Trail] = {}
        for event in sorted(arrivals, key=lambda event: event.time):
            trail = self.trails.add(event)
            changes[trail.number] = trail
        for trail in changes.values():
            is_refused = trail.refusal is not None
            self.totals.refusals += (is_refused - trail.was_refused) if trail.number >= self._first_number else 0
            trail.was_refused = is_refused
        self.totals.requests = self.trails.next_number - self._first_number
        if changes or self.totals != self._sent_totals:
            self._sent_totals = Totals(**asdict(self.totals))
            self._send(self._batch([changes[number] for number in sorted(changes)[-ROWS_LIMIT:]]))

    def show_groups(self, groups: Sequence[Group]) -> None:
        """Send those groups of the overview that changed."""
        changes = [group for group in groups if group not in self.groups]
        self.groups = groups
        if changes:
            self._send(Change("groups", rendering.groups(changes)))

    def show_faults(self, current: Mapping[str, Any]) -> None:
        """Send the switches, if any changed."""
        is_change, self.faults = current != self.faults, dict(current)
        self.first_look.set()
        if is_change:
            self._send(Change("faults", rendering.switches(current)))

    def render(self, lab: str) -> str:
        """Return the page as of now."""
        return rendering.page(rendering.View(lab, self.groups, self.faults, self.trails.last(ROWS_LIMIT)))

    async def read(self) -> AsyncIterator[str]:
        """Yield messages for one browser for as long as it reads; none when as many as can be served read already."""
        if self.is_full:
            return
        reader = Reader()
        self._readers.add(reader)
        reader.enqueue(self._batch(self.trails.last(ROWS_LIMIT)))
        reader.enqueue(Change("groups", rendering.groups(self.groups)))
        reader.enqueue(Change("faults", rendering.switches(self.faults)))
        try:
            while not self._is_closed:
                while reader.queue:
                    yield reader.queue.popleft().message()
                reader.news.clear()
                try:
                    async with asyncio.timeout(IDLE_SECONDS):
                        await reader.news.wait()
                except TimeoutError:
                    yield ": still here\n\n"
        finally:
            self._readers.discard(reader)

    async def close(self) -> None:
        """End what browsers read, so that no answer is cut; a browser that takes nothing is not waited for."""
        self._is_closed = True
        for reader in self._readers:
            reader.news.set()
        for _ in range(CLOSING_TURNS):
            await asyncio.sleep(0)

    @property
    def is_full(self) -> bool:
        """Whether no more browsers can be served."""
        return len(self._readers) >= READERS_LIMIT

    def _batch(self, trails: Sequence[Trail]) -> Batch:
        rows = [(trail.number, rendering.row(trail)) for trail in trails] if self._readers else []
        return Batch(rows, asdict(self.totals))

    def _send(self, item: Batch | Change) -> None:
        for reader in self._readers:
            reader.enqueue(item)


def _message(name: str, content: Mapping[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(content)}\n\n"
