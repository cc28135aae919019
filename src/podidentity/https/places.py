"""Places for connections: how many there may be, and how many of them one address may have."""

from podidentity.issuance.fairness import FairQuota

CONNECTIONS = 4096
CONNECTIONS_OF_ONE_ADDRESS = 256


class Places:
    """Counts connections by address."""

    def __init__(self, total: int = CONNECTIONS, per_address: int = CONNECTIONS_OF_ONE_ADDRESS) -> None:
        self._quota = FairQuota(total, per_address)
        self.count = 0

    def take(self, address: str) -> bool:
        """Take a place; False when the address has its share, or everything is taken."""
        if self._quota.is_full(address):
            return False
        self._quota.take(address)
        self.count += 1
        return True

    def give_back(self, address: str) -> None:
        """Give a place back."""
        self._quota.give_back(address)
        self.count -= 1
