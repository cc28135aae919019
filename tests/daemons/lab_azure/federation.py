"""An issuer's tokens, and a tenant's answers to them on a clock that jumps, for tests of federated credentials."""

import json
from dataclasses import dataclass, field
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from starlette.testclient import TestClient

from clocks import JumpingClock
from podidentity_lab.azure import Azure, AzureSettings

ISSUER = "https://issuer.example/cluster"
SUBJECT = "system:serviceaccount:default:reader"
AUDIENCE = "api://AzureADTokenExchange"
ENTRA = "login.microsoftonline.com"
ARM = "https://management.azure.com"
_BEARER = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"


@dataclass
class Key:
    """One of an issuer's signing keys."""

    kid: str
    private: rsa.RSAPrivateKey = field(default_factory=lambda: rsa.generate_private_key(65537, 2048))

    def public(self) -> dict[str, Any]:
        """Return the key as it is published."""
        public: dict[str, Any] = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(self.private.public_key()))
        return {**public, "kid": self.kid, "use": "sig"}


class Tenant:
    """A tenant with one identity; its services are asked in this process."""

    def __init__(self) -> None:
        """Create the identity `one`, and an issuer with one key."""
        self.clock = JumpingClock()
        self.azure = Azure(AzureSettings(), self.clock.wall)
        self.azure.faults.federation_write_seconds = 0
        self.http = TestClient(self.azure.app)
        self.key = Key("first")
        self.published = [self.key]
        self.azure.publish_issuer(ISSUER, lambda: {"keys": [key.public() for key in self.published]})
        owner = self.azure.settings.owner
        secret = {"client_secret": owner.secret}
        self.token = self.ask(owner.client_id, secret, scope=f"{ARM}/.default")[1]["access_token"]
        group = f"/subscriptions/{self.azure.settings.subscription_id}/resourceGroups/rg"
        self.manage("PUT", group, {"location": "westeurope"})
        self.identity = f"{group}/providers/Microsoft.ManagedIdentity/userAssignedIdentities/one"
        properties = self.manage("PUT", self.identity, {"location": "westeurope"})[1]["properties"]
        self.client_id, self.principal_id = properties["clientId"], properties["principalId"]

    def ask(self, client_id: str, proof: dict[str, str], scope: str = f"{ARM}/.default") -> tuple[int, Any]:
        """Return status and body of a request for a token."""
        form = {"grant_type": "client_credentials", "client_id": client_id, "scope": scope, **proof}
        url = f"https://{ENTRA}/{self.azure.settings.tenant_id}/oauth2/v2.0/token"
        response = self.http.post(url, data=form)
        return response.status_code, response.json()

    def exchange(self, assertion: str, client_id: str = "", scope: str = f"{ARM}/.default") -> tuple[int, str, int]:
        """Return status, error and AADSTS number of an exchange; a token has no number."""
        proof = {"client_assertion": assertion, "client_assertion_type": _BEARER}
        status, body = self.ask(client_id or self.client_id, proof, scope)
        self.description = body.get("error_description", "")
        self.lifetime = body.get("expires_in", 0)
        self.access_token = body.get("access_token", "")
        return (status, body["error"], body["error_codes"][0]) if status != 200 else (200, "", 0)

    def assertion(self, key: Key | None = None, header: dict[str, Any] | None = None, **changed: Any) -> str:
        """Return a service account's token; `changed` replaces claims."""
        now = int(self.clock.wall())
        claims = {"iss": ISSUER, "sub": SUBJECT, "aud": [AUDIENCE], "iat": now, "nbf": now, "exp": now + 3600}
        signer = key or self.key
        names = {"kid": signer.kid, **(header or {})}
        return jwt.encode(claims | changed, signer.private, "RS256", headers=names)

    def manage(self, method: str, path: str, body: Any = None, version: str = "2023-01-31") -> tuple[int, Any]:
        """Return status and body of a request to ARM, by the owner."""
        headers = {"Authorization": f"Bearer {self.token}"}
        response = self.http.request(method, f"{ARM}{path}?api-version={version}", headers=headers, json=body)
        self.headers = response.headers
        return response.status_code, response.json() if response.content else None

    def trust(self, name: str = "fed", version: str = "2023-01-31", **changed: Any) -> int:
        """Write a federated credential; return the status."""
        properties = {"issuer": ISSUER, "subject": SUBJECT, "audiences": [AUDIENCE], **changed}
        path = f"{self.identity}/federatedIdentityCredentials/{name}"
        return self.manage("PUT", path, {"properties": properties}, version)[0]
