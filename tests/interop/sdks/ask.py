"""Asks for tokens with the real Python SDKs: one JSON request a line on stdin, one JSON answer a line on stdout.

Runs in a pod's network namespace. A request names `client` (sync, aio, msal), `resource`, `options` for the credential,
and `chain`: whether a credential that always works stands behind it.
"""

import asyncio
import json
import sys
import time
from typing import Any

import azure.identity
import azure.identity.aio
import msal
import requests
from azure.core.credentials import AccessToken, AccessTokenInfo

BEHIND = "from the next credential of the chain"


class Static:
    """A credential that always works."""

    def get_token(self, *_: str, **__: Any) -> AccessToken:
        """Return a token."""
        return AccessToken(BEHIND, int(time.time()) + 100)

    def get_token_info(self, *_: str, **__: Any) -> AccessTokenInfo:
        """Return a token."""
        return AccessTokenInfo(BEHIND, int(time.time()) + 100)


class AsyncStatic(Static):
    """An asynchronous credential that always works."""

    async def get_token(self, *_: str, **__: Any) -> AccessToken:  # type: ignore[override]
        """Return a token."""
        return AccessToken(BEHIND, int(time.time()) + 100)

    async def get_token_info(self, *_: str, **__: Any) -> AccessTokenInfo:  # type: ignore[override]
        """Return a token."""
        return AccessTokenInfo(BEHIND, int(time.time()) + 100)

    async def close(self) -> None:
        """Do nothing: no connection is open."""


def sync(asked: dict[str, Any]) -> dict[str, Any]:
    """Ask with azure.identity."""
    credential: Any = azure.identity.ManagedIdentityCredential(**asked["options"])
    if asked["chain"]:
        credential = azure.identity.ChainedTokenCredential(credential, Static())
    token = credential.get_token(f"{asked['resource']}/.default")
    return {"token": token.token, "expires_on": token.expires_on}


def aio(asked: dict[str, Any]) -> dict[str, Any]:
    """Ask with azure.identity.aio."""

    async def act() -> dict[str, Any]:
        one = azure.identity.aio.ManagedIdentityCredential(**asked["options"])
        async with one:
            behind: Any = AsyncStatic()
            chain = azure.identity.aio.ChainedTokenCredential(one, behind)
            token = await (chain if asked["chain"] else one).get_token(f"{asked['resource']}/.default")
        return {"token": token.token, "expires_on": token.expires_on}

    return asyncio.run(act())


def by_msal(asked: dict[str, Any]) -> dict[str, Any]:
    """Ask with MSAL itself, which retries nothing."""
    options = asked["options"]
    identity: Any = msal.SystemAssignedManagedIdentity()
    if options:
        names = {"client_id": "client_id", "msi_res_id": "resource_id", "object_id": "object_id"}
        given = {names[name]: value for name, value in options.items()}
        identity = msal.UserAssignedManagedIdentity(**given)
    client = msal.ManagedIdentityClient(identity, http_client=requests.Session())
    answer = client.acquire_token_for_client(resource=asked["resource"])
    if "access_token" not in answer:
        return {"error": answer["error"], "message": answer["error_description"]}
    return {"token": answer["access_token"], "expires_on": int(time.time()) + answer["expires_in"]}


CLIENTS = {"sync": sync, "aio": aio, "msal": by_msal}


def main() -> None:
    """Answer until stdin ends."""
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            told = CLIENTS[asked["client"]](asked)
        except Exception as error:  # noqa: BLE001  # which error it is is what the test is about
            told = {"error": type(error).__name__, "message": str(error)}
        print(json.dumps(told), flush=True)  # noqa: T201  # the answer


if __name__ == "__main__":
    main()
