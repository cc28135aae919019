"""Asks for a token with Python's ManagedIdentityCredential and DefaultAzureCredential, as any program does.

Prints one JSON object: for each credential its token, or its error's type and message. With SELECTOR, the first
credential names that client ID. All other settings are in the environment.
"""

import json
import os
from typing import Any

from azure.identity import DefaultAzureCredential, ManagedIdentityCredential

SCOPE = "https://vault.azure.net/.default"


def answer(credential: Any) -> dict[str, str]:
    """Ask with a credential; return its token or its error."""
    try:
        return {"token": credential.get_token(SCOPE).token}
    except Exception as error:  # noqa: BLE001  # whichever type it is: that is what is asked
        return {"error": type(error).__name__, "message": str(error)}


if __name__ == "__main__":
    selector = os.environ.get("SELECTOR")
    managed = ManagedIdentityCredential(client_id=selector) if selector else ManagedIdentityCredential()
    print(json.dumps({"managed": answer(managed), "default": answer(DefaultAzureCredential())}))
