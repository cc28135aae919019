"""What browsers are sent: batches of trails, the overview, the faults. Bounded on every side.

However much happens, a browser gets a few batches a second, each with a bounded number of rows and the number of those
left out. For a browser that does not read as fast, what waits is replaced by the number of requests that it was.
"""

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from podidentity_lab.page import rendering
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


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows by element ID, and how many requests they are of; `missed` are those without a row."""

    rows: Sequence[tuple[str, str]] = ()
    requests: int = 0
    refused_requests: int = 0
    missed: int = 0

    def message(self) -> str:
        """Return it as a server-sent event."""
        fields = {"requests": self.requests, "refused": self.refused_requests, "missed": self.missed}
        return _message("batch", {"rows": self.rows, **fields})


@dataclass(eq=False)
class Reader:
    """One browser. `queue` holds messages; what did not fit is counted in `summary`."""

    queue: deque[tuple[str, Batch | None]] = field(default_factory=deque)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def enqueue(self, message: str, batch: Batch | None = None) -> None:
        """Queue a message; when the queue is full, batches in it become one that only counts."""
        if len(self.queue) >= QUEUE_LIMIT:
            self._summarize()
        self.queue.append((message, batch))
        self.news.set()

    def _summarize(self) -> None:
        batches = [batch for _, batch in self.queue if batch is not None]
        total = sum(batch.requests for batch in batches)
        refused_total = sum(batch.refused_requests for batch in batches)
        summary = Batch((), total, refused_total, total)
        latest = {message.partition("\n")[0]: (message, batch) for message, batch in self.queue if batch is None}
        self.queue.clear()
        self.queue.extend([(summary.message(), summary), *latest.values()])


class Feed:
    """Takes events, makes trails of them and sends both to whoever reads."""

    def __init__(self) -> None:
        self.trails = Trails()
        self.groups: Sequence[Group] = ()
        self.faults: Mapping[str, Any] = {}
        self.first_look = asyncio.Event()
        self.last_events: deque[Event] = deque(maxlen=EVENTS_LIMIT)
        self._arrivals: deque[Event] = deque(maxlen=EVENTS_LIMIT)
        self._earlier_arrivals: deque[Event] = deque()
        self._readers: set[Reader] = set()
        self._is_closed = False

    @property
    def has_readers(self) -> bool:
        """Whether any browser reads."""
        return bool(self._readers)

    def take(self, events: Sequence[Event]) -> None:
        """Take events in any order; they are sent by `flush`."""
        self._arrivals.extend(events)
        self.last_events.extend(events)

    def flush(self) -> None:
        """Send a batch of the events that came before the last flush: by now those of other logs are here, too."""
        arrivals, self._earlier_arrivals, self._arrivals = (
            self._earlier_arrivals,
            self._arrivals,
            deque(maxlen=EVENTS_LIMIT),
        )
        if not arrivals:
            return
        next_number = self.trails.next_number
        changes: dict[int, Trail] = {}
        for event in sorted(arrivals, key=lambda event: event.time):
            trail = self.trails.add(event)
            changes[trail.number] = trail
        new_trails = [trail for number, trail in changes.items() if number >= next_number]
        latest = [changes[number] for number in sorted(changes)[-ROWS_LIMIT:]]
        refusals = sum(trail.refusal is not None for trail in new_trails)
        missed = max(0, len(new_trails) - ROWS_LIMIT)
        batch = Batch(_rows(latest) if self._readers else (), len(new_trails), refusals, missed)
        message = batch.message() if self._readers else ""
        for reader in self._readers:
            reader.enqueue(message, batch)

    def show_groups(self, groups: Sequence[Group]) -> None:
        """Send those groups of the overview that changed."""
        changes = [group for group in groups if group not in self.groups]
        self.groups = groups
        self._send("groups", rendering.groups(changes) if changes else {})

    def show_faults(self, faults: Mapping[str, Any]) -> None:
        """Send the switches, if any changed."""
        is_change, self.faults = faults != self.faults, dict(faults)
        self.first_look.set()
        self._send("faults", rendering.switches(faults) if is_change else {})

    def render(self, lab: str) -> str:
        """Return the page as of now."""
        return rendering.page(rendering.View(lab, self.groups, self.faults, self.trails.last(ROWS_LIMIT)))

    async def read(self) -> AsyncIterator[str]:
        """Yield messages for one browser for as long as it reads."""
        reader = Reader()
        reader.enqueue(Batch(_rows(self.trails.last(ROWS_LIMIT))).message(), Batch())
        reader.enqueue(_message("groups", rendering.groups(self.groups)))
        reader.enqueue(_message("faults", rendering.switches(self.faults)))
        self._readers.add(reader)
        try:
            while not self._is_closed:
                while reader.queue:
                    yield reader.queue.popleft()[0]
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

    def _send(self, name: str, content: Mapping[str, Any]) -> None:
        if content:
            for reader in self._readers:
                reader.enqueue(_message(name, content))


def _rows(trails: Sequence[Trail]) -> list[tuple[str, str]]:
    return [(rendering.identifier(trail), rendering.row(trail)) for trail in trails]


def _message(name: str, content: Mapping[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(content)}\n\n"
