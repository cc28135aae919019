"""ARM's limits for machines and federated credentials, as token buckets: off unless asked for (`Faults.throttle`).

Numbers: learn.microsoft.com/troubleshoot/azure/virtual-machine-scale-sets/troubleshooting-throttling-errors, in the
size that a subscription sees for one resource; for federated credentials
learn.microsoft.com/entra/workload-id/workload-identity-federation-considerations. The bursts that the latter allow are
not documented; here a burst is what ten seconds allow.
"""

from dataclasses import dataclass

from podidentity_lab.azure import answers


@dataclass(frozen=True, slots=True)
class Limit:
    """So many at once, and so many more a minute."""

    name: str
    burst: int
    per_minute: int


READS = Limit("GetVMScaleSet", 36, 12)
UPDATES = Limit("UpdateVMScaleSet", 12, 4)
FEDERATED_READS = Limit("GetFederatedIdentityCredential", 5, 30)
FEDERATED_WRITES = Limit("UpdateFederatedIdentityCredential", 2, 15)
FEDERATED_WRITES_OF_ALL = Limit("UpdateFederatedIdentityCredentials", 20, 120)


class Buckets:
    """One bucket for each resource and limit."""

    def __init__(self) -> None:
        self._levels: dict[tuple[str, str], tuple[float, float]] = {}

    def take(self, resource_id: str, limit: Limit, now: float) -> None:
        """Count one request. Refuses with 429 and Retry-After when the bucket is empty."""
        key = (resource_id.lower(), limit.name)
        level, since = self._levels.get(key, (float(limit.burst), now))
        level = min(float(limit.burst), level + (now - since) * limit.per_minute / 60)
        if level < 1:
            self._levels[key] = (level, now)
            raise _refusal(limit, max(1, round((1 - level) * 60 / limit.per_minute)))
        self._levels[key] = (level - 1, now)


def _refusal(limit: Limit, seconds: int) -> answers.Refusal:
    message = "The server rejected the request because too many requests have been received for this subscription."
    detail = {"code": "TooManyRequests", "target": limit.name, "message": f"Retry after {seconds} seconds."}
    return answers.arm(429, "OperationNotAllowed", message, {"Retry-After": str(seconds)}, details=[detail])
