"""Counts calls for tokens, and how long they take."""

from collections.abc import Callable
from time import perf_counter

from podidentity.core.tokens.sources import Source
from podidentity.errors import AzureError
from podidentity.issuance.ports import Grant, Tokens

NoteCall = Callable[[Source, float, AzureError | None], None]
"""What is told of each call when it has ended: its source, the seconds it took, and Azure's error if there was one."""


class MeasuredTokens:
    """Tells `note_call` of each call of `tokens`."""

    def __init__(self, tokens: Tokens, note_call: NoteCall) -> None:
        self._tokens = tokens
        self._note_call = note_call

    async def acquire(self, source: Source, resource: str) -> Grant:
        """Return a token. Raises what the source raises."""
        start = perf_counter()
        error: AzureError | None = None
        try:
            return await self._tokens.acquire(source, resource)
        except AzureError as failure:
            error = failure
            raise
        finally:
            self._note_call(source, perf_counter() - start, error)
