"""Waits until ARM has finished an asynchronous operation, by polling its status.

All operations of a MIC together are polled `POLLS_PER_SECOND` times at most. A poll that fails does not end the wait:
ARM goes on all the same. learn.microsoft.com/azure/azure-resource-manager/management/async-operations
"""

import asyncio

import httpx2

from podidentity.azure.management import Management, document, refusal
from podidentity.errors import AzureError
from podidentity.http import retry_after_seconds

POLL_SECONDS = 5.0
"""Between two polls of an operation when ARM sends no Retry-After."""
POLLS_PER_SECOND = 10.0
FAILED_POLLS = 10
"""After so many failures in a row the operation is given up, and its target is read again."""
LONGEST_SECONDS = 3600.0
"""The longest wait for one operation: ARM ends its operations sooner."""
_FINAL_STATES = {"succeeded", "failed", "canceled", "cancelled"}


class Operations:
    """Polls the operations of one ARM."""

    def __init__(self, arm: Management) -> None:
        self._arm = arm
        self._next_look = 0.0

    async def wait(self, operation: str, response: httpx2.Response) -> None:
        """Return when the operation that `response` began has succeeded.

        Raises AzureError when it failed, was given up or took longer than `LONGEST_SECONDS`.
        """
        url = response.headers.get("Azure-AsyncOperation") or ""
        by_status = bool(url)
        if not url and response.status_code == httpx2.codes.ACCEPTED:
            url = response.headers.get("Location") or ""
        if not url:
            return
        if not self._arm.owns(url):
            raise AzureError(
                f"ARM sends {operation} to a foreign host, which gets no token; check the cloud's endpoints"
            )
        try:
            async with asyncio.timeout(LONGEST_SECONDS):
                await self._follow(operation, url, retry_after_seconds(response), by_status=by_status)
        except TimeoutError:
            raise AzureError(
                f"ARM has not ended {operation} within {LONGEST_SECONDS:g} s; look at its activity log"
            ) from None

    async def _follow(self, operation: str, url: str, pause: float | None, *, by_status: bool) -> None:
        failure_count = 0
        while True:
            await self._pause(POLL_SECONDS if pause is None else pause)
            try:
                answer = await self._arm.send("GET", url)
            except AzureError as error:
                failure_count += 1
                if failure_count >= FAILED_POLLS or error.status == httpx2.codes.NOT_FOUND:
                    raise
                pause = error.retry_after_seconds
                continue
            failure_count, pause = 0, retry_after_seconds(answer)
            if _has_ended(operation, answer, by_status=by_status):
                return

    async def _pause(self, seconds: float) -> None:
        """Wait `seconds`, and then for this operation's turn among all others."""
        await asyncio.sleep(seconds)
        now = asyncio.get_running_loop().time()
        turn = max(now, self._next_look)
        self._next_look = turn + 1 / POLLS_PER_SECOND
        await asyncio.sleep(turn - now)


def _has_ended(operation: str, answer: httpx2.Response, *, by_status: bool) -> bool:
    """Whether an operation is over. Raises AzureError when it failed; its `status` is the poll's HTTP status, 200."""
    if not by_status:
        return answer.status_code != httpx2.codes.ACCEPTED
    content = document(answer)
    status = str(content.get("status", "")).lower()
    if status in _FINAL_STATES - {"succeeded"}:
        error = content.get("error") or f"the operation {status}"
        raise refusal(operation, answer, error if isinstance(error, dict) else {"message": str(error)})
    return status in _FINAL_STATES
