"""ARM's token buckets for one VM or scale set, so that MIC stays below them instead of running into 429.

Figures: learn.microsoft.com/azure/virtual-machines/compute-throttling-limits, for each resource. Used by `keeping`;
`mic.statuses` keeps buckets of its own.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Bucket:
    """`left` tokens at the time `at` (seconds); one comes back every `refill_seconds`, up to `capacity`."""

    capacity: float
    refill_seconds: float
    left: float
    at: float = 0.0

    def left_at(self, now: float) -> float:
        """Say how many tokens there are at `now`."""
        return min(self.left + max(now - self.at, 0.0) / self.refill_seconds, self.capacity)

    def take(self, now: float) -> "Bucket":
        """Spend one token, which must be there."""
        return replace(self, left=self.left_at(now) - 1, at=now)

    def ready_at(self, now: float, wanted: float = 1.0) -> float:
        """Say when there will be `wanted` tokens; `now` when they are there."""
        missing = wanted - self.left_at(now)
        # A hair is added: the moment computed here must be late enough when it has come and is computed again.
        return now if missing <= 0 else now + missing * self.refill_seconds + 0.001


UPDATES = Bucket(capacity=12, refill_seconds=15.0, left=12)
"""PATCHes: 12 at once, 4 a minute."""
READS = Bucket(capacity=36, refill_seconds=5.0, left=36)
"""GETs: 36 at once, 12 a minute."""
TOUCHES = Bucket(capacity=1, refill_seconds=60.0, left=1)
"""Changes of one AzureIdentity that are acted on at once: a tenant's loop must not spend a scale set's PATCHes."""
