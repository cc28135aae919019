"""The identities of a VM or scale set in ARM: read them, change them, wait until the change is done.

One document and one property are touched, so these are plain requests. Protocol: learn.microsoft.com/rest/api/compute
and azure/azure-resource-manager/management/async-operations. When to ask is decided by `mic.targets`.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import httpx2

from podidentity.azure.clouds import Cloud
from podidentity.azure.credentials import ArmCredential
from podidentity.core.arm import IdentityId, Target, TargetState, parse_identity_id
from podidentity.core.drift import Change
from podidentity.errors import AzureError

API_VERSION = "2019-12-01"
"""What upstream uses; every cloud has it."""
POLL_SECONDS = 5.0
"""Between two looks at an operation when ARM does not say."""
_ENDED = {"succeeded", "failed", "canceled"}
Json = dict[str, Any]


class Machines:
    """VMs and scale sets of one cloud."""

    def __init__(
        self,
        cloud: Cloud,
        credential: ArmCredential,
        http: httpx2.AsyncClient,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._cloud = cloud
        self._credential = credential
        self._http = http
        self._sleep = sleep

    async def get(self, target: Target) -> TargetState:
        """Read what a target carries; one that does not exist is `gone`. Raises AzureError."""
        try:
            answer = await self._send("GET", f"{self._cloud.arm}{target.path}?api-version={API_VERSION}")
        except AzureError as error:
            if error.status == httpx2.codes.NOT_FOUND:
                return TargetState(gone=True)
            raise
        return read_state(_document(answer))

    async def patch(self, target: Target, change: Change, state: TargetState) -> None:
        """Change what a target carries and return when ARM has done it. Raises AzureError."""
        body = {"identity": render_identity(change, state)}
        answer = await self._send("PATCH", f"{self._cloud.arm}{target.path}?api-version={API_VERSION}", body)
        operation = answer.headers.get("Azure-AsyncOperation")
        if operation:
            await self._wait(operation, _retry_after(answer))

    async def _wait(self, operation: str, pause: float | None) -> None:
        while True:
            await self._sleep(POLL_SECONDS if pause is None else pause)
            answer = await self._send("GET", operation)
            found = _document(answer)
            if str(found.get("status", "")).lower() in _ENDED:
                break
            pause = _retry_after(answer)
        if str(found["status"]).lower() != "succeeded":
            raise _refusal("the change", answer, found.get("error") or {})

    async def _send(self, method: str, url: str, body: Json | None = None) -> httpx2.Response:
        headers = {"Authorization": f"Bearer {await self._credential.token()}"}
        try:
            answer = await self._http.request(method, url, json=body, headers=headers)
        except httpx2.HTTPError as error:
            raise AzureError(f"ARM did not answer {method} {url.split('?', maxsplit=1)[0]}: {error!r}") from error
        if answer.is_error:
            raise _refusal(f"{method} {url.split('?', maxsplit=1)[0]}", answer, _error(answer))
        return answer


def read_state(document: Mapping[str, Any]) -> TargetState:
    """Read a VM's or scale set's document; every field of it may be missing."""
    identity = document.get("identity") or {}
    found: dict[IdentityId, str] = {}
    for text, value in (identity.get("userAssignedIdentities") or {}).items():
        parsed = parse_identity_id(text)
        if parsed is not None:
            found[parsed] = str((value or {}).get("clientId") or "").lower()
    return TargetState(
        identities=frozenset(found),
        client_ids=tuple(sorted(found.items())),
        system_assigned="systemassigned" in str(identity.get("type", "")).lower(),
        gone=str((document.get("properties") or {}).get("provisioningState", "")).lower() == "deleting",
    )


def render_identity(change: Change, state: TargetState) -> Json:
    """Write the property that a PATCH sets: only what changes is named, a system-assigned identity stays."""
    system = ["SystemAssigned"] if state.system_assigned else []
    remaining = (state.identities | {*change.assign}) - {*change.unassign}
    if not remaining:
        return {"type": "SystemAssigned" if system else "None", "userAssignedIdentities": None}
    named: Json = {identity.text: {} for identity in change.assign}
    named |= {identity.text: None for identity in change.unassign}
    return {"type": ", ".join([*system, "UserAssigned"]), "userAssignedIdentities": named}


def _retry_after(answer: httpx2.Response) -> float | None:
    text = answer.headers.get("Retry-After", "")
    return float(text) if text.isdigit() else None


def _document(answer: httpx2.Response) -> Json:
    try:
        found = answer.json()
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise AzureError(f"ARM answered {answer.status_code} without a JSON object; is that ARM?")
    return found


def _error(answer: httpx2.Response) -> Json:
    try:
        found = answer.json().get("error")
    except (ValueError, AttributeError):
        return {}
    return found if isinstance(found, dict) else {}


def _refusal(what: str, answer: httpx2.Response, error: Json) -> AzureError:
    code, message = str(error.get("code", "")), str(error.get("message", ""))
    told = f"ARM refused {what}: {code or answer.status_code}: {message or answer.reason_phrase}"
    return AzureError(told, status=answer.status_code, code=code, retry_after_seconds=_retry_after(answer))
