"""A client of the real API for the lab's own few requests: plain HTTP as the administrator."""

import json
import ssl
from collections.abc import AsyncIterator
from typing import Any

import httpx2

from podidentity_lab.fabric import FABRIC_ADDRESS
from podidentity_lab.orchestrator import KUBERNETES_PORT

Json = dict[str, Any]
ANSWER_SECONDS = 30.0
MERGE_PATCH = "application/merge-patch+json"


class Client:
    """Requests as the administrator. Every method raises `httpx2.HTTPError`."""

    def __init__(self, ca_pem: bytes, token: str) -> None:
        self._http = httpx2.AsyncClient(
            base_url=f"https://{FABRIC_ADDRESS}:{KUBERNETES_PORT}",
            headers={"Authorization": f"Bearer {token}"},
            verify=ssl.create_default_context(cadata=ca_pem.decode()),
            trust_env=False,
            timeout=ANSWER_SECONDS,
        )

    async def is_ready(self) -> bool:
        """Whether the API serves; False as well while nobody listens."""
        try:
            answer = await self._http.get("/readyz")
        except httpx2.HTTPError:
            return False
        return answer.status_code == 200

    async def list(self, path: str) -> Json:
        """Return a list, decoded."""
        answer = await self._http.get(path)
        answer.raise_for_status()
        content: Json = answer.json()
        return content

    async def patch_status(self, path: str, status: Json) -> None:
        """Merge `status` into an object's status."""
        body = json.dumps({"status": status})
        answer = await self._http.patch(f"{path}/status", content=body, headers={"Content-Type": MERGE_PATCH})
        answer.raise_for_status()

    async def watch(self, path: str, version: str) -> AsyncIterator[Json]:
        """Yield changes since `version` until the server ends the watch."""
        parameters = {"watch": "true", "resourceVersion": version, "allowWatchBookmarks": "true"}
        async with self._http.stream(
            "GET", path, params=parameters, timeout=httpx2.Timeout(ANSWER_SECONDS, read=None)
        ) as stream:
            stream.raise_for_status()
            async for line in stream.aiter_lines():
                yield json.loads(line)
