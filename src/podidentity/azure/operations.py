"""Waiting until ARM has done what it accepted.

All operations of a MIC together are looked at `POLLS_PER_SECOND` times at most. A look that fails is no end: ARM
works on whatever becomes of our question. learn.microsoft.com/azure/azure-resource-manager/management/async-operations
"""

import asyncio

import httpx2

from podidentity.azure.management import Management, document, refusal, retry_after
from podidentity.errors import AzureError

POLL_SECONDS = 5.0
"""Between two looks at an operation when ARM does not say."""
POLLS_PER_SECOND = 10.0
FAILED_LOOKS = 10
"""In a row; then the operation is given up, and its target is read again."""
LONGEST_SECONDS = 3600.0
"""ARM ends its operations before."""
_ENDED = {"succeeded", "failed", "canceled", "cancelled"}


class Operations:
    """Looks at the operations of one ARM."""

    def __init__(self, arm: Management) -> None:
        self._arm = arm
        self._next_look = 0.0

    async def wait(self, what: str, accepted: httpx2.Response) -> None:
        """Return when ARM has done what it `accepted`. Raises AzureError when it did not, or will not say."""
        url = accepted.headers.get("Azure-AsyncOperation") or ""
        by_status = bool(url)
        if not url and accepted.status_code == httpx2.codes.ACCEPTED:
            url = accepted.headers.get("Location") or ""
        if not url:
            return
        if not self._arm.owns(url):
            raise AzureError(f"ARM sends {what} to a foreign host, which gets no token; check the cloud's endpoints")
        try:
            async with asyncio.timeout(LONGEST_SECONDS):
                await self._follow(what, url, retry_after(accepted), by_status=by_status)
        except TimeoutError:
            raise AzureError(
                f"ARM has not ended {what} within {LONGEST_SECONDS:g} s; look at its activity log"
            ) from None

    async def _follow(self, what: str, url: str, pause: float | None, *, by_status: bool) -> None:
        failed = 0
        while True:
            await self._pause(POLL_SECONDS if pause is None else pause)
            try:
                answer = await self._arm.send("GET", url)
            except AzureError as error:
                failed += 1
                if failed >= FAILED_LOOKS or error.status == httpx2.codes.NOT_FOUND:
                    raise
                pause = error.retry_after_seconds
                continue
            failed, pause = 0, retry_after(answer)
            if _has_ended(what, answer, by_status=by_status):
                return

    async def _pause(self, seconds: float) -> None:
        """Wait, and then for a turn among all operations."""
        await asyncio.sleep(seconds)
        now = asyncio.get_running_loop().time()
        turn = max(now, self._next_look)
        self._next_look = turn + 1 / POLLS_PER_SECOND
        await asyncio.sleep(turn - now)


def _has_ended(what: str, answer: httpx2.Response, *, by_status: bool) -> bool:
    """Read an answer. Raises AzureError when the operation failed: then `status` is the answer's own, 200."""
    if not by_status:
        return answer.status_code != httpx2.codes.ACCEPTED
    found = document(answer)
    status = str(found.get("status", "")).lower()
    if status in _ENDED - {"succeeded"}:
        error = found.get("error") or f"the operation {status}"
        raise refusal(what, answer, error if isinstance(error, dict) else {"message": str(error)})
    return status in _ENDED
