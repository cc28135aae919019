"""A broker for bench/broker.py in a process of its own: the real one, whose API server and Entra ID answer at once.

Writes into FOLDER: `request` (a whole request), `server.pem` and `server.key` (for a reference that serves the same
bytes); prints its port and serves until its standard input ends.
"""

import asyncio
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jwt
import trustme
import uvloop

from daemons.broker import harness
from podidentity.core.exchange.callers import AUDIENCE


class AnyCluster(harness.Cluster):
    """Accepts every token as what it says, and lets everybody use every identity."""

    async def review_token(self, assertion: str, audience: str) -> Mapping[str, Any]:
        """Believe the token."""
        claims = jwt.decode(assertion, options={"verify_signature": False})
        extra = {"pod-name": claims["jti"], "pod-uid": claims["jti"], "node-name": "node-1"}
        user = {
            "username": claims["sub"],
            "groups": ["system:serviceaccounts", "system:authenticated"],
            "extra": {f"authentication.kubernetes.io/{key}": [value] for key, value in extra.items()},
        }
        return {"authenticated": True, "audiences": [audience], "user": user}

    async def review_access(self, spec: Mapping[str, Any]) -> Mapping[str, Any]:
        """Allow it."""
        del spec
        return {"allowed": True}


def assertion(number: int) -> str:
    """Return a token as long as real ones: RS256's signature has 342 characters."""
    claims = {
        "iss": "https://oidc.prod-aks.azure.com/11111111-2222-3333-4444-555555555555/",
        "aud": [AUDIENCE],
        "exp": 1_900_000_000,
        "jti": f"00000000-0000-4000-8000-{number:012d}",
        "kubernetes.io": {
            "namespace": f"team-{number % 100}",
            "node": {"name": "aks-nodepool1-12345678-vmss000001", "uid": "9b1f1c9e-0000-4000-8000-000000000000"},
            "pod": {"name": f"application-{number}", "uid": f"00000000-0000-4000-8000-{number:012d}"},
            "serviceaccount": {"name": "application", "uid": "3f7a5d0f-0000-4000-8000-000000000000"},
        },
        "sub": f"system:serviceaccount:team-{number % 100}:application",
    }
    return harness.jwt(claims)[: -len("c2lnbmF0dXJl")] + "A" * 342


def request(number: int) -> bytes:
    """Return a whole request of a pod."""
    body = harness.encoded(assertion(number))
    head = (
        f"POST {harness.PATH} HTTP/1.1\r\nHost: podidentity-broker.podidentity-broker.svc\r\n"
        "User-Agent: azsdk-python-identity/1.27.0 Python/3.11.7 (Linux-6.1.0-x86_64-with-glibc2.36)\r\n"
        "Accept: */*\r\nConnection: keep-alive\r\nContent-Type: application/x-www-form-urlencoded\r\n"
        f"x-client-SKU: MSAL.Python\r\nx-client-Ver: 1.39.0\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def serve(folder: Path) -> None:
    """Serve until the standard input ends."""
    (folder / "request").write_bytes(request(0))
    certificate = trustme.CA().issue_cert("localhost")
    (folder / "server.pem").write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    (folder / "server.key").write_bytes(certificate.private_key_pem.bytes())
    async with harness.serving(cluster_type=AnyCluster) as broker:
        print(json.dumps({"port": broker.port}), flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    uvloop.run(serve(Path(sys.argv[1])))
