"""What was asked and answered, as values: for `lab log`, for the demo and for tests."""

from collections import deque
from dataclasses import dataclass, field

KEPT = 10_000


@dataclass(frozen=True, slots=True)
class Entry:
    """One request. `who` is a client ID, or the machine's name for IMDS; empty when unknown."""

    time: float
    service: str
    who: str
    method: str
    what: str
    status: int


@dataclass(slots=True)
class Log:
    """The last requests, oldest first."""

    entries: deque[Entry] = field(default_factory=lambda: deque(maxlen=KEPT))

    def add(self, entry: Entry) -> None:
        """Remember one request."""
        self.entries.append(entry)
