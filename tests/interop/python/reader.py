"""Reads one secret with one of Python's clients, and prints how that went as one line of JSON.

The argument names the client: default, sync, aio or msal. The environment names the vault and the secret, and no
identity: that is decided at the address that every client asks.
"""

import asyncio
import json
import os
import sys
import traceback
from importlib.metadata import version

VAULT = f"https://{os.environ['AZURE_KEYVAULT_NAME']}.vault.azure.net"
SECRET = os.environ["AZURE_KEYVAULT_SECRET_NAME"]


def read_sync() -> str:
    """Return the secret, read with DefaultAzureCredential."""
    from azure.identity import DefaultAzureCredential
    from azure.keyvault.secrets import SecretClient

    return SecretClient(VAULT, DefaultAzureCredential()).get_secret(SECRET).value or ""


def read_sync_managed() -> str:
    """Return the secret, read with the credential that asks for a managed identity only."""
    from azure.identity import ManagedIdentityCredential
    from azure.keyvault.secrets import SecretClient

    return SecretClient(VAULT, ManagedIdentityCredential()).get_secret(SECRET).value or ""


async def _read_aio() -> str:
    from azure.identity.aio import ManagedIdentityCredential
    from azure.keyvault.secrets.aio import SecretClient

    async with ManagedIdentityCredential() as credential, SecretClient(VAULT, credential) as client:
        return (await client.get_secret(SECRET)).value or ""


def read_aio() -> str:
    """Return the secret, read with the asynchronous clients."""
    return asyncio.run(_read_aio())


def read_msal() -> str:
    """Return the secret, read with a token of msal's own client for managed identities and a plain request."""
    import msal
    import requests

    session = requests.Session()
    client = msal.ManagedIdentityClient(msal.SystemAssignedManagedIdentity(), http_client=session)
    token = client.acquire_token_for_client(resource="https://vault.azure.net")
    if "access_token" not in token:
        raise LookupError(f"{token['error']}: {token.get('error_description')}")
    header = {"Authorization": f"Bearer {token['access_token']}"}
    answer = session.get(f"{VAULT}/secrets/{SECRET}", params={"api-version": "7.4"}, headers=header, timeout=30)
    answer.raise_for_status()
    return str(answer.json()["value"])


CLIENTS = {"default": read_sync, "sync": read_sync_managed, "aio": read_aio, "msal": read_msal}


def main() -> None:
    """Read the secret once, and print the outcome."""
    packages = ("azure-identity", "azure-keyvault-secrets", "msal")
    said: dict[str, object] = {"ok": True, "versions": {name: version(name) for name in packages}}
    try:
        said["secret"] = CLIENTS[sys.argv[1]]()
    except Exception as error:  # noqa: BLE001  # whichever type it is: that is what is asked
        said |= {"ok": False, "type": type(error).__name__, "message": str(error)}
        traceback.print_exc()
    print(json.dumps(said))


if __name__ == "__main__":
    main()
