"""Entra ID: discovery, keys, and tokens for applications that prove who they are.

Signs every token of the lab, the managed identities' too. v1 and v2 endpoints as in shared client libraries.
"""

import json
import secrets
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qs

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from podidentity.lab.azure import answers
from podidentity.lab.azure.state import AzureSettings, Json, Principal, State

HOST = "login.microsoftonline.com"
LIFETIME_SECONDS = 3600
MANAGED_LIFETIME_SECONDS = 86_400
_CLOCK_SKEW_SECONDS = 300


class Entra:
    """The tenant's token service."""

    def __init__(self, settings: AzureSettings, state: State, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._state = state
        self._clock = clock
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self._kid = secrets.token_hex(8)

    def issue(self, principal: Principal, audience: str, lifetime_seconds: int = LIFETIME_SECONDS) -> str:
        """Sign an access token, in the form of Entra ID's v1 tokens."""
        now = int(self._clock())
        tenant = self._settings.tenant_id
        claims = {
            "aud": audience,
            "iss": f"https://sts.windows.net/{tenant}/",
            "iat": now,
            "nbf": now - _CLOCK_SKEW_SECONDS,
            "exp": now + lifetime_seconds,
            "appid": principal.client_id,
            "oid": principal.object_id,
            "sub": principal.object_id,
            "tid": tenant,
            "idtyp": "app",
            "ver": "1.0",
        }
        if principal.resource_id:
            claims["xms_mirid"] = principal.resource_id
        return jwt.encode(claims, self._key, algorithm="RS256", headers={"kid": self._kid, "x5t": self._kid})

    def caller(self, request: Request, *audiences: str) -> Principal:
        """The principal of a request's bearer token; refuses in ARM's form."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            challenge = f'Bearer authorization_uri="https://{HOST}/{self._settings.tenant_id}", error="invalid_token"'
            headers = {"WWW-Authenticate": challenge}
            raise answers.arm(
                401, "AuthenticationFailed", "Authentication failed. The 'Authorization' header is missing.", headers
            )
        claims = self.verify(token, *audiences)
        principal = self._state.principals.get(claims["oid"]) if claims else None
        if principal is None:
            raise answers.arm(
                401, "InvalidAuthenticationToken", "The access token is invalid: wrong audience, signature or time."
            )
        return principal

    def verify(self, token: str, *audiences: str) -> Json | None:
        """The claims of a token of this tenant for one of `audiences`; None when anything is wrong with it."""
        accepted = [form for audience in audiences for form in (audience.rstrip("/"), audience.rstrip("/") + "/")]
        options: Any = {"verify_exp": False, "verify_nbf": False, "verify_iat": False}
        try:
            claims: Json = jwt.decode(token, self._key.public_key(), ["RS256"], audience=accepted, options=options)
        except jwt.InvalidTokenError:
            return None
        return claims if claims["nbf"] <= self._clock() < claims["exp"] else None

    async def serve(self, request: Request) -> Response:
        """Answer one request to the login host."""
        parts = [part for part in request.url.path.split("/") if part]
        path = "/".join(parts[1:]).lower()
        if path.endswith("discovery/instance"):
            return JSONResponse(self._instance(request))
        if path.endswith(".well-known/openid-configuration"):
            return JSONResponse(self._configuration(parts[0], request, v2=path.startswith("v2.0")))
        if path.endswith(("discovery/v2.0/keys", "discovery/keys")):
            return JSONResponse(self._keys())
        if request.method == "POST" and path in {"oauth2/v2.0/token", "oauth2/token"}:
            form = {name: values[0] for name, values in parse_qs((await request.body()).decode()).items()}
            return JSONResponse(self._token(parts[0], form, v2="v2.0" in path))
        raise answers.entra(404, "invalid_request", 90002, f"There is nothing at {request.url.path}.")

    def _token(self, tenant: str, form: Mapping[str, str], *, v2: bool) -> Json:
        if tenant.lower() != self._settings.tenant_id.lower():
            raise answers.entra(400, "invalid_request", 90002, f"Tenant '{tenant}' not found.")
        if form.get("grant_type") != "client_credentials":
            raise answers.entra(400, "unsupported_grant_type", 70003, "Only client_credentials is granted here.")
        principal = self._authenticated(form)
        scope = form.get("scope", "")
        if v2 and not scope.endswith("/.default"):
            raise answers.entra(400, "invalid_scope", 1002012, f"The scope '{scope}' must end in /.default.")
        audience = scope.removesuffix("/.default") if v2 else form.get("resource", "")
        token = self.issue(principal, audience)
        if v2:
            lifetime = {"expires_in": LIFETIME_SECONDS - 1, "ext_expires_in": LIFETIME_SECONDS - 1}
            return {"token_type": "Bearer", **lifetime, "access_token": token}
        now = int(self._clock())
        times = {"expires_in": "3599", "expires_on": str(now + LIFETIME_SECONDS), "not_before": str(now)}
        return {"token_type": "Bearer", **times, "resource": audience, "access_token": token}

    def _authenticated(self, form: Mapping[str, str]) -> Principal:
        client_id = form.get("client_id", "")
        principal = self._state.principal_of(client_id)
        if principal is None or principal.resource_id:
            message = f"Application with identifier '{client_id}' was not found in the directory."
            raise answers.entra(400, "unauthorized_client", 700016, message)
        if not secrets.compare_digest(principal.secret.encode(), form.get("client_secret", "").encode()):
            message = f"Invalid client secret provided for app '{client_id}'."
            raise answers.entra(401, "invalid_client", 7000215, message)
        return principal

    def _configuration(self, tenant: str, request: Request, *, v2: bool) -> Json:
        base = f"https://{request.headers['host']}"
        version = "/v2.0" if v2 else ""
        issuer = (
            f"{base}/{self._settings.tenant_id}/v2.0" if v2 else f"https://sts.windows.net/{self._settings.tenant_id}/"
        )
        return {
            "token_endpoint": f"{base}/{tenant}/oauth2{version}/token",
            "authorization_endpoint": f"{base}/{tenant}/oauth2{version}/authorize",
            "device_authorization_endpoint": f"{base}/{tenant}/oauth2{version}/devicecode",
            "jwks_uri": f"{base}/common/discovery/v2.0/keys",
            "issuer": issuer,
            "response_types_supported": ["code", "id_token"],
            "subject_types_supported": ["pairwise"],
            "id_token_signing_alg_values_supported": ["RS256"],
            "cloud_instance_name": "microsoftonline.com",
            "cloud_graph_host_name": "graph.windows.net",
            "msgraph_host": "graph.microsoft.com",
        }

    def _instance(self, request: Request) -> Json:
        tenant, host = self._settings.tenant_id, request.headers["host"]
        known = {
            "preferred_network": host,
            "preferred_cache": "login.windows.net",
            "aliases": [host, "login.windows.net"],
        }
        endpoint = f"https://{host}/{tenant}/v2.0/.well-known/openid-configuration"
        return {"tenant_discovery_endpoint": endpoint, "api-version": "1.1", "metadata": [known]}

    def _keys(self) -> Json:
        public: Json = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(self._key.public_key()))
        issuer = f"https://{HOST}/{self._settings.tenant_id}/v2.0"
        return {
            "keys": [{**public, "use": "sig", "kid": self._kid, "x5t": self._kid, "alg": "RS256", "issuer": issuer}]
        }
