"""What the shared part asks of a source of tokens.

Limits and retries are wrappers that are `Tokens` themselves.
"""

from typing import Protocol

from podidentity.core.tokens.imds import Token
from podidentity.core.tokens.sources import Source

Grant = Token | tuple[Token, ...]
"""What a source returns: one token, or for a service principal with auxiliary tenants one for each tenant."""


class Tokens(Protocol):
    """Where a token comes from."""

    async def acquire(self, source: Source, resource: str) -> Grant:
        """Return a valid token. Raises `AzureError`, or another `PodIdentityError` that says what to set right."""
