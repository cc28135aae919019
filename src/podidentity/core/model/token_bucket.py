"""The one rate limiter: a bucket of tokens as a value. Whoever keeps one decides what a token stands for."""

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class TokenBucket:
    """`tokens` are left at the time `updated_at` (seconds); one comes back every `refill_seconds`, up to `capacity`."""

    capacity: float
    refill_seconds: float
    tokens: float
    updated_at: float = 0.0

    def tokens_at(self, now: float) -> float:
        """Return how many tokens there are at `now`."""
        return min(self.tokens + max(now - self.updated_at, 0.0) / self.refill_seconds, self.capacity)

    def take(self, now: float, count: float = 1.0) -> "TokenBucket":
        """Return the bucket without `count` tokens; missing ones are owed to who waits until `ready_at`."""
        return replace(self, tokens=self.tokens_at(now) - count, updated_at=now)

    def ready_at(self, now: float, count: float = 1.0) -> float:
        """Return when there will be `count` tokens; `now` when they are there."""
        missing = count - self.tokens_at(now)
        # A hair is added: the moment computed here must be late enough when it has come and is computed again.
        return now if missing <= 0 else now + missing * self.refill_seconds + 0.001


def full_bucket(capacity: float, refill_seconds: float, now: float = 0.0) -> TokenBucket:
    """Return a bucket that starts full at `now`."""
    return TokenBucket(capacity, refill_seconds, capacity, now)
