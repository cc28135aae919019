"""What goes wrong on request. Tests set these fields; every service asks before it answers."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class Faults:
    """`patch_seconds`: how long a machine's PATCH takes. `imds_seconds`: how long a token takes.

    `imds_statuses` and `arm_statuses` are answered instead of the truth, first first, until the list is empty.
    """

    patch_seconds: float = 0.3
    imds_seconds: float = 0.0
    imds_statuses: list[int] = field(default_factory=list)
    arm_statuses: list[int] = field(default_factory=list)
    retry_after_seconds: int | None = None
