"""What is sent back: always JSON."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer. `retry_after_seconds` and `allow` become headers."""

    status: int
    body: bytes = field(repr=False)
    retry_after_seconds: float | None = None
    allow: str = ""
