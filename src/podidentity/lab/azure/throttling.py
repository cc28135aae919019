"""ARM's limits for machines, as token buckets: off unless asked for (`Faults.throttle`). Called by `arm_machines`.

Numbers: learn.microsoft.com/troubleshoot/azure/virtual-machine-scale-sets/troubleshooting-throttling-errors, in the
size that a subscription sees for one resource.
"""

from dataclasses import dataclass

from podidentity.lab.azure import answers


@dataclass(frozen=True, slots=True)
class Limit:
    """So many at once, and so many more a minute."""

    name: str
    burst: int
    per_minute: int


READS = Limit("GetVMScaleSet", 36, 12)
UPDATES = Limit("UpdateVMScaleSet", 12, 4)


class Buckets:
    """One bucket for each machine and limit."""

    def __init__(self) -> None:
        self._left: dict[tuple[str, str], tuple[float, float]] = {}

    def take(self, machine_id: str, limit: Limit, now: float) -> None:
        """Count one request. Refuses with 429 and Retry-After when the bucket is empty."""
        key = (machine_id.lower(), limit.name)
        left, since = self._left.get(key, (float(limit.burst), now))
        left = min(float(limit.burst), left + (now - since) * limit.per_minute / 60)
        if left < 1:
            self._left[key] = (left, now)
            raise _refusal(limit, max(1, round((1 - left) * 60 / limit.per_minute)))
        self._left[key] = (left - 1, now)


def _refusal(limit: Limit, seconds: int) -> answers.Refusal:
    message = "The server rejected the request because too many requests have been received for this subscription."
    detail = {"code": "TooManyRequests", "target": limit.name, "message": f"Retry after {seconds} seconds."}
    return answers.arm(429, "OperationNotAllowed", message, {"Retry-After": str(seconds)}, details=[detail])
