"""Asks for tokens with Python's WorkloadIdentityCredential through a token proxy. The argument: sync or aio.

One JSON request a line on stdin, one JSON answer a line on stdout. `{}` asks for a token of the pod's own identity:
everything else is in the environment, as the webhook sets it (AZURE_CLIENT_ID, AZURE_KUBERNETES_TOKEN_PROXY, ...).
`scope`, `client_id`, `tenant_id` and `token_file` replace a default. `claims` is a challenge, `cae` says that the
client understands challenges, `new` asks with a new credential, which has no tokens yet.
"""

import asyncio
import json
import sys
from typing import Any

SCOPE = "https://vault.azure.net/.default"
NAMES = {"client_id": "client_id", "tenant_id": "tenant_id", "token_file": "token_file_path"}
_credentials: dict[str, Any] = {}


def credential_for(request: dict[str, Any], kind: Any) -> Any:
    """Return the credential for a request, with the token proxy switched on; equal requests share a credential."""
    options = {option: request[name] for name, option in NAMES.items() if request.get(name)}
    key = json.dumps(options, sort_keys=True)
    if request.get("new") or key not in _credentials:
        _credentials[key] = kind(enable_azure_proxy=True, **options)
    return _credentials[key]


def options_of(request: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of `get_token` beside the scope."""
    return {
        **({"claims": request["claims"]} if request.get("claims") else {}),
        **({"enable_cae": True} if request.get("cae") else {}),
    }


def ask(request: dict[str, Any]) -> Any:
    """Ask with azure.identity."""
    from azure.identity import WorkloadIdentityCredential

    credential = credential_for(request, WorkloadIdentityCredential)
    return credential.get_token(request.get("scope", SCOPE), **options_of(request))


async def ask_aio(request: dict[str, Any]) -> Any:
    """Ask with azure.identity.aio."""
    from azure.identity.aio import WorkloadIdentityCredential

    credential = credential_for(request, WorkloadIdentityCredential)
    return await credential.get_token(request.get("scope", SCOPE), **options_of(request))


def main() -> None:
    """Answer until stdin ends."""
    with asyncio.Runner() as runner:
        for line in sys.stdin:
            request = json.loads(line)
            try:
                token = ask(request) if sys.argv[1] == "sync" else runner.run(ask_aio(request))
                answer = {"token": token.token, "expires_on": token.expires_on}
            except Exception as error:  # noqa: BLE001  # whichever type it is: that is what is asked
                answer = {"error": type(error).__name__, "message": str(error)}
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
