"""Requests to ARM with MIC's token, and ARM's errors as `AzureError`. `compute` and `operations` know what to ask."""

import asyncio
from typing import Any, Protocol
from urllib.parse import urlsplit

import httpx2

from podidentity.errors import AzureError
from podidentity.http import json_object, read_body, retry_after_seconds

LONGEST_ANSWER_SECONDS = 120.0
LONGEST_ANSWER_BYTES = 16 * 1024 * 1024
"""A scale set with a few hundred identities and extensions has some 100 kB."""
_CODE_CHARACTERS, _MESSAGE_CHARACTERS = 200, 4000
_TRANSFER_HEADERS = {"content-encoding", "content-length", "transfer-encoding"}
Json = dict[str, Any]


class Credential(Protocol):
    """Where tokens for ARM come from: MIC's own identity."""

    async def token(self) -> str:
        """Return a token for ARM. Raises AzureError."""
        ...

    def note_refused(self, token: str) -> None:
        """Note that ARM did not accept `token`: the next one must be a new one."""
        ...


class Management:
    """ARM of one cloud. `base` is its address without a slash at the end.

    Graph is asked in the same way: `service` is the name in errors.
    """

    def __init__(self, base: str, credential: Credential, http: httpx2.AsyncClient, service: str = "ARM") -> None:
        self.base = base
        self._service = service
        self._credential = credential
        self._http = http

    async def send(self, method: str, url: str, body: Json | None = None) -> httpx2.Response:
        """Send one request; once more with a fresh token when ARM answers 401. Raises AzureError."""
        request_name = f"{method} {urlsplit(url).path}"
        for last in (False, True):
            token = await self._signed_in()
            try:
                headers = {"Authorization": f"Bearer {token}"}
                answer = await read_response(
                    self._http, self._http.build_request(method, url, json=body, headers=headers)
                )
            except (httpx2.HTTPError, httpx2.InvalidURL) as error:
                raise AzureError(
                    f"{self._service} did not answer {request_name}: {error!r}; check the network and the cloud"
                ) from error
            if answer.status_code != httpx2.codes.UNAUTHORIZED or last:
                break
            self._credential.note_refused(token)
        if not answer.is_success:  # a redirect too: no other host gets our token
            raise refusal(request_name, answer, _error(answer), self._service)
        return answer

    async def _signed_in(self) -> str:
        try:
            return await self._credential.token()
        except AzureError as error:
            # Its status and code are about MIC's own login: as ARM's they would be blamed on an identity of a pod.
            raise AzureError(str(error), retry_after_seconds=error.retry_after_seconds) from error

    def owns(self, url: str) -> bool:
        """Whether a token may be sent to `url`: this ARM, or a regional part of it."""
        try:
            address, base = urlsplit(url), urlsplit(self.base)
            if (address.scheme, address.port) != (base.scheme, base.port) or not (address.hostname and base.hostname):
                return False
        except ValueError:  # brackets without an address, a port that is no number
            return False
        return address.hostname == base.hostname or address.hostname.endswith(f".{base.hostname}")


async def read_response(http: httpx2.AsyncClient, request: httpx2.Request) -> httpx2.Response:
    """Send a request and read its answer, within limits of time and size. Raises httpx2.HTTPError."""
    try:
        async with asyncio.timeout(LONGEST_ANSWER_SECONDS):
            answer = await http.send(request, stream=True)
            try:
                body = await read_body(answer, LONGEST_ANSWER_BYTES)
            finally:
                await answer.aclose()
    except TimeoutError:
        raise httpx2.ReadTimeout(f"no whole answer within {LONGEST_ANSWER_SECONDS:g} s", request=request) from None
    if body is None:
        raise httpx2.DecodingError("the answer is too long", request=request)
    headers = [(name, value) for name, value in answer.headers.multi_items() if name.lower() not in _TRANSFER_HEADERS]
    return httpx2.Response(answer.status_code, headers=headers, content=body, request=request)


def document(answer: httpx2.Response) -> Json:
    """Return an answer's body, a JSON object. Raises AzureError for anything else."""
    try:
        content = answer.json()
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise AzureError(f"ARM answered {answer.status_code} without a JSON object; check the endpoints of the cloud")
    return content


def refusal(request_name: str, answer: httpx2.Response, error: Json, service: str = "ARM") -> AzureError:
    """Return the error for ARM's error object (`code`, `message`), both cut to a bounded length."""
    code = str(error.get("code") or "")[:_CODE_CHARACTERS]
    service_message = str(error.get("message") or "")[:_MESSAGE_CHARACTERS]
    message = (
        f"{service} refused {request_name}: {code or answer.status_code}: {service_message or answer.reason_phrase}"
    )
    pause = retry_after_seconds(answer) if answer.is_error else None
    return AzureError(
        message, status=answer.status_code, code=code, service_message=service_message, retry_after_seconds=pause
    )


def _error(answer: httpx2.Response) -> Json:
    """Return ARM's error object; a body that is no JSON object with one is the message."""
    error_object = json_object(answer.content).get("error")
    return error_object if isinstance(error_object, dict) else {"message": answer.text[:1000]}
