"""Federated credentials of managed identities (ARM) and applications (Graph): read, created, deleted.

Writes go one after the other and at Azure's pace: ARM takes 0.25 a second for an identity and answers 409 to those
that meet, both services answer 429 with Retry-After.
learn.microsoft.com/entra/workload-id/workload-identity-federation-considerations
"""

from collections.abc import Callable
from typing import Any, Protocol
from urllib.parse import quote

import httpx2

from podidentity.azure.management import Management, document
from podidentity.core.model.federation import FederatedCredential
from podidentity.errors import AzureError
from podidentity.timing import SYSTEM_CLOCK, Clock

ARM_VERSION = "2023-01-31"
WRITE_SECONDS = 4.0
"""Between two writes below one identity."""
TRIES = 8
"""How often a request is sent while Azure asks to come back later."""
LONGEST_PAUSE_SECONDS = 120.0
_KIND = "federatedIdentityCredentials"
_THROTTLED, _CONFLICT, _SERVER_ERROR = 429, 409, 500

Notice = Callable[[str], None]
"""Told why the next request waits."""


class Credentials(Protocol):
    """The federated credentials of one identity or application."""

    async def list(self) -> tuple[FederatedCredential, ...]:
        """Return all. Raises AzureError."""
        ...

    async def write(self, credential: FederatedCredential) -> None:
        """Create one, or change the one of its name. Raises AzureError."""
        ...

    async def delete(self, name: str) -> bool:
        """Delete one; whether it was there. Raises AzureError."""
        ...


class Requests:
    """Requests about one identity or application: writes at Azure's pace, all of them again when it says "later"."""

    def __init__(self, service: Management, notice: Notice, clock: Clock = SYSTEM_CLOCK) -> None:
        self._service = service
        self._notice = notice
        self._clock = clock
        self._next_write = float("-inf")

    async def read_all(self, path: str) -> list[dict[str, Any]]:
        """Return the items of all pages. Raises AzureError."""
        items: list[dict[str, Any]] = []
        url = f"{self._service.base}{path}"
        while url:
            page = document(await self._send("GET", url))
            items += [item for item in page.get("value") or () if isinstance(item, dict)]
            url = str(page.get("nextLink") or page.get("@odata.nextLink") or "")
            if url and not self._service.owns(url):
                raise AzureError(f"{url} would continue the list, and is another service; check the cloud's endpoints")
        return items

    async def write(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx2.Response:
        """Send one write. Raises AzureError."""
        pause = self._next_write - self._clock.steady()
        if pause > 0:
            await self._clock.sleep(pause)
        try:
            return await self._send(method, f"{self._service.base}{path}", body)
        finally:
            self._next_write = self._clock.steady() + WRITE_SECONDS

    async def _send(self, method: str, url: str, body: dict[str, Any] | None = None) -> httpx2.Response:
        for remaining in reversed(range(TRIES)):
            try:
                return await self._service.send(method, url, body)
            except AzureError as error:
                pause = _pause(error)
                if pause is None or not remaining:
                    raise
                self._notice(f"{error.code or error.status}: the next try is in {pause:g} s")
                await self._clock.sleep(pause)
        raise AssertionError("the last try returns or raises")


def _pause(error: AzureError) -> float | None:
    """Return how long to wait before the same request may succeed; None when it never will."""
    if error.status == _CONFLICT and "concurrent" in error.code.lower():
        return error.retry_after_seconds or WRITE_SECONDS
    if error.status == _THROTTLED or error.status >= _SERVER_ERROR:
        return min(error.retry_after_seconds or WRITE_SECONDS, LONGEST_PAUSE_SECONDS)
    return None


class IdentityCredentials:
    """Those of a user-assigned identity; `identity` is its resource ID."""

    def __init__(self, requests: Requests, identity: str) -> None:
        self._requests = requests
        self._path = f"{identity}/{_KIND}"

    async def list(self) -> tuple[FederatedCredential, ...]:
        """Return all."""
        items = await self._requests.read_all(f"{self._path}?api-version={ARM_VERSION}")
        return tuple(_credential(item, item.get("properties") or {}) for item in items)

    async def write(self, credential: FederatedCredential) -> None:
        """Create one, or change the one of its name."""
        properties = _body(credential)
        await self._requests.write("PUT", self._url(credential.name), {"properties": properties})

    async def delete(self, name: str) -> bool:
        """Delete one; whether it was there."""
        try:
            answer = await self._requests.write("DELETE", self._url(name))
        except AzureError as error:
            if error.status == httpx2.codes.NOT_FOUND:
                return False
            raise
        return answer.status_code != httpx2.codes.NO_CONTENT

    def _url(self, name: str) -> str:
        return f"{self._path}/{quote(name, safe='')}?api-version={ARM_VERSION}"


class ApplicationCredentials:
    """Those of an application; `object_id` is the application's, not its service principal's."""

    def __init__(self, requests: Requests, object_id: str) -> None:
        self._requests = requests
        self._path = f"/v1.0/applications/{object_id}/{_KIND}"

    async def list(self) -> tuple[FederatedCredential, ...]:
        """Return all."""
        return tuple(_credential(item, item) for item in await self._requests.read_all(self._path))

    async def write(self, credential: FederatedCredential) -> None:
        """Create one, or change the one of its name."""
        item = await self._find(credential.name)
        if item is None:
            await self._requests.write("POST", self._path, {"name": credential.name, **_body(credential)})
        else:
            await self._requests.write("PATCH", f"{self._path}/{item['id']}", _body(credential))

    async def delete(self, name: str) -> bool:
        """Delete one; whether it was there."""
        item = await self._find(name)
        if item is None:
            return False
        await self._requests.write("DELETE", f"{self._path}/{item['id']}")
        return True

    async def _find(self, name: str) -> dict[str, Any] | None:
        items = await self._requests.read_all(self._path)
        return next((item for item in items if item.get("name") == name), None)


def _body(credential: FederatedCredential) -> dict[str, Any]:
    return {"issuer": credential.issuer, "subject": credential.subject, "audiences": [credential.audience]}


def _credential(item: dict[str, Any], fields: dict[str, Any]) -> FederatedCredential:
    audiences = fields.get("audiences") or [""]
    return FederatedCredential(
        str(item.get("name", "")), str(fields.get("issuer", "")), str(fields.get("subject", "")), str(audiences[0])
    )
