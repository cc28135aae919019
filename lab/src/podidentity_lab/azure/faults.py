"""What goes wrong, and how slow things are, on request. Every service asks before it answers; `admin` sets them."""

from dataclasses import dataclass, field
from typing import Annotated

from msgspec import Meta

Status = Annotated[int, Meta(ge=400, le=599)]
Seconds = Annotated[float, Meta(ge=0)]


@dataclass(slots=True)
class Faults:
    """`patch_seconds`: how long a machine's PATCH takes. `imds_seconds`: how long a token takes.

    `imds_fails`: which share of an instance's token requests is answered 500, 0.05 being each twentieth.
    `imds_token_seconds`: how long its tokens live, a day unless given.

    A list of statuses has what a service answers next instead of the truth: one status for each request until the list
    is empty, with `retry_after_seconds` as Retry-After when that is set. `operation_errors` are codes with which the
    next PATCHes fail at their end. `throttle` turns on ARM's limits (see `throttling`).

    `entra_seconds`: how long Entra ID takes for a token: for longer than a client waits, it is silent.

    `federation_write_seconds`: how long ARM writes a federated credential; another write below the same identity is
    409 meanwhile. `federation_delay_seconds`: how long Entra ID does not know a credential that was written.
    `issuer_keys_seconds`: how long it keeps an issuer's keys; 0: it fetches them each time.
    """

    patch_seconds: Seconds = 0.3
    imds_seconds: Seconds = 0.0
    imds_fails: Annotated[float, Meta(ge=0, le=1)] = 0.0
    imds_token_seconds: Annotated[int, Meta(ge=0)] | None = None
    imds_statuses: list[Status] = field(default_factory=list)
    arm_statuses: list[Status] = field(default_factory=list)
    entra_statuses: list[Status] = field(default_factory=list)
    keyvault_statuses: list[Status] = field(default_factory=list)
    blob_statuses: list[Status] = field(default_factory=list)
    operation_errors: list[str] = field(default_factory=list)
    retry_after_seconds: Annotated[int, Meta(ge=0)] | None = None
    throttle: bool = False
    entra_seconds: Seconds = 0.0
    federation_write_seconds: Seconds = 0.1
    federation_delay_seconds: Seconds = 0.0
    issuer_keys_seconds: Seconds = 1500.0

    def headers(self) -> dict[str, str]:
        """Return the headers of such an answer."""
        return {} if self.retry_after_seconds is None else {"Retry-After": str(self.retry_after_seconds)}
