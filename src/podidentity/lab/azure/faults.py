"""What goes wrong, and how slow things are, on request. Every service asks before it answers; `admin` sets them."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class Faults:
    """`patch_seconds`: how long a machine's PATCH takes. `imds_seconds`: how long a token takes.

    `imds_fails`: which share of an instance's token requests is answered 500, 0.05 being each twentieth.
    `imds_token_seconds`: how long its tokens live, a day unless given.

    The lists of statuses are answered instead of the truth, first first, until a list is empty; with
    `retry_after_seconds` as their Retry-After, when given. `operation_errors` are codes with which the next PATCHes
    fail at their end. `throttle` turns on ARM's limits for machines (see `throttling`).
    """

    patch_seconds: float = 0.3
    imds_seconds: float = 0.0
    imds_fails: float = 0.0
    imds_token_seconds: int | None = None
    imds_statuses: list[int] = field(default_factory=list)
    arm_statuses: list[int] = field(default_factory=list)
    entra_statuses: list[int] = field(default_factory=list)
    keyvault_statuses: list[int] = field(default_factory=list)
    operation_errors: list[str] = field(default_factory=list)
    retry_after_seconds: int | None = None
    throttle: bool = False

    def headers(self) -> dict[str, str]:
        """What an answer that was asked for carries."""
        return {} if self.retry_after_seconds is None else {"Retry-After": str(self.retry_after_seconds)}
