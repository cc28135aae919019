"""Requests to ARM: signed, and refused in one sentence. Used by `compute` and `operations`, which know what to ask."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Protocol
from urllib.parse import urlsplit

import httpx2

from podidentity.errors import AzureError

LONGEST_RETRY_AFTER_SECONDS = 3600.0
"""ARM asks for minutes; what asks for more is taken for a mistake."""
LONGEST_ANSWER_SECONDS = 120.0
LONGEST_ANSWER_BYTES = 16 * 1024 * 1024
"""A scale set with a few hundred identities and extensions has some 100 kB."""
_CODE_CHARACTERS, _SAID_CHARACTERS = 200, 4000
_OF_THE_TRANSFER = {"content-encoding", "content-length", "transfer-encoding"}
Json = dict[str, Any]


class Credential(Protocol):
    """Whoever MIC is."""

    async def token(self) -> str:
        """Give a token for ARM. Raises AzureError."""
        ...

    def refused(self, token: str) -> None:
        """ARM did not take this token: the next one must be a new one."""
        ...


class Management:
    """ARM of one cloud. `base` is its address without a slash at the end."""

    def __init__(self, base: str, credential: Credential, http: httpx2.AsyncClient) -> None:
        self.base = base
        self._credential = credential
        self._http = http

    async def send(self, method: str, url: str, body: Json | None = None) -> httpx2.Response:
        """Send one request; once more with a fresh token when ARM did not like the first. Raises AzureError."""
        shown = f"{method} {urlsplit(url).path}"
        for last in (False, True):
            token = await self._signed_in()
            try:
                headers = {"Authorization": f"Bearer {token}"}
                answer = await whole(self._http, self._http.build_request(method, url, json=body, headers=headers))
            except (httpx2.HTTPError, httpx2.InvalidURL) as error:
                raise AzureError(f"ARM did not answer {shown}: {error!r}; check the network and azure.json") from error
            if answer.status_code != httpx2.codes.UNAUTHORIZED or last:
                break
            self._credential.refused(token)
        if not answer.is_success:  # a redirect too: nobody else is told our token, and nothing was done
            raise refusal(shown, answer, _error(answer))
        return answer

    async def _signed_in(self) -> str:
        try:
            return await self._credential.token()
        except AzureError as error:
            # Its status and code speak of MIC's login: taken for ARM's they would blame an identity of a pod.
            raise AzureError(str(error), retry_after_seconds=error.retry_after_seconds) from error

    def owns(self, url: str) -> bool:
        """Whether a token may be sent to `url`: this ARM, or a regional part of it."""
        try:
            asked, own = urlsplit(url), urlsplit(self.base)
            if (asked.scheme, asked.port) != (own.scheme, own.port) or not (asked.hostname and own.hostname):
                return False
        except ValueError:  # brackets without an address, a port that is no number
            return False
        return asked.hostname == own.hostname or asked.hostname.endswith(f".{own.hostname}")


def retry_after(answer: httpx2.Response, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> float | None:
    """Read Retry-After, in seconds or as a date; None without one that can be read (RFC 9110, 10.2.3)."""
    text = answer.headers.get("Retry-After", "").strip()
    if text.isdecimal():
        return min(float(text), LONGEST_RETRY_AFTER_SECONDS)
    try:
        seconds = (parsedate_to_datetime(text) - now()).total_seconds()
    except (TypeError, ValueError):
        return None
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER_SECONDS)


async def whole(http: httpx2.AsyncClient, request: httpx2.Request) -> httpx2.Response:
    """Send a request and read its answer, which may be neither endless nor endlessly slow. Raises httpx2.HTTPError."""
    try:
        async with asyncio.timeout(LONGEST_ANSWER_SECONDS):
            answer = await http.send(request, stream=True)
            try:
                body = bytearray()
                async for piece in answer.aiter_bytes():
                    body += piece
                    if len(body) > LONGEST_ANSWER_BYTES:
                        raise httpx2.DecodingError("the answer is too long", request=request)
            finally:
                await answer.aclose()
    except TimeoutError:
        raise httpx2.ReadTimeout(f"no whole answer within {LONGEST_ANSWER_SECONDS:g} s", request=request) from None
    kept = [(name, value) for name, value in answer.headers.multi_items() if name.lower() not in _OF_THE_TRANSFER]
    return httpx2.Response(answer.status_code, headers=kept, content=bytes(body), request=request)


def document(answer: httpx2.Response) -> Json:
    """Read a JSON object. Raises AzureError for anything else."""
    try:
        found = answer.json()
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise AzureError(f"ARM answered {answer.status_code} without a JSON object; check the endpoints of the cloud")
    return found


def refusal(what: str, answer: httpx2.Response, error: Json) -> AzureError:
    """Make an error from ARM's own."""
    code, said = str(error.get("code") or "")[:_CODE_CHARACTERS], str(error.get("message") or "")[:_SAID_CHARACTERS]
    told = f"ARM refused {what}: {code or answer.status_code}: {said or answer.reason_phrase}"
    asked = retry_after(answer) if answer.is_error else None
    return AzureError(told, status=answer.status_code, code=code, said=said, retry_after_seconds=asked)


def _error(answer: httpx2.Response) -> Json:
    """Find ARM's error; a body that is no JSON is the message."""
    try:
        found = answer.json().get("error")
    except (ValueError, AttributeError, RecursionError):
        return {"message": answer.text[:1000]}
    return found if isinstance(found, dict) else {"message": answer.text[:1000]}
