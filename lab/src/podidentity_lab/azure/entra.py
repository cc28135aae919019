"""Entra ID: discovery, keys, and tokens for applications that prove who they are.

It signs every token of the lab, those of managed identities too. It has the v1 and the v2 endpoints, as client
libraries use both. An application's proof is checked in `assertions`, the audience that it asks for in `audiences`;
what is peculiar to users who sign in is in `user_tokens`.
"""

import asyncio
import dataclasses
import json
import secrets
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qs

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from podidentity_lab.azure import answers, audiences, sign_in, user_tokens
from podidentity_lab.azure.assertions import Assertions
from podidentity_lab.azure.faults import Faults
from podidentity_lab.azure.issuers import Issuers
from podidentity_lab.azure.sign_in import GRANTS, SignIn, SignIns
from podidentity_lab.azure.state import Json, Principal, State, User

HOST = "login.microsoftonline.com"
HOSTS = (HOST, "login.windows.net", "sts.windows.net")
LIFETIME_SECONDS = 3600
MANAGED_LIFETIME_SECONDS = 86_400
_CLOCK_SKEW_SECONDS = 300
_ANY_TENANT = {"common", "organizations"}


class Entra:
    """The tenant's token service."""

    def __init__(self, state: State, issuers: Issuers, faults: Faults, clock: Callable[[], float]) -> None:
        self._settings = state.settings
        self._state = state
        self._faults = faults
        self._clock = clock
        self._key = _signing_key(state)
        self._kid = state.keys["kid"]
        self._assertions = Assertions(issuers, clock)
        self.sign_ins = SignIns(state, clock, f"https://{HOST}")
        issuers.publish(self._issuer, self.keys)

    def issue(self, principal: Principal, audience: str, lifetime_seconds: int = LIFETIME_SECONDS) -> str:
        """Return a signed access token in the form of v1; one for the token exchange has v2's form and issuer."""
        tenant = self._settings.tenant_id
        exchange = audience.lower() == audiences.EXCHANGE.lower()
        claims = {
            "aud": audience,
            "iss": self._issuer if exchange else f"https://sts.windows.net/{tenant}/",
            "appid": principal.client_id,
            "oid": principal.object_id,
            "sub": principal.object_id,
            "idtyp": "app",
            "ver": "2.0" if exchange else "1.0",
        }
        if principal.resource_id:
            claims["xms_mirid"] = principal.resource_id
        return self._sign(claims, lifetime_seconds)

    def _sign(self, claims: Json, lifetime_seconds: int) -> str:
        """Return a token of these claims, and of the tenant and the times that every token has."""
        now = int(self._clock())
        times = {"iat": now, "nbf": now - _CLOCK_SKEW_SECONDS, "exp": now + lifetime_seconds}
        content = {**claims, **times, "tid": self._settings.tenant_id}
        return jwt.encode(content, self._key, algorithm="RS256", headers={"kid": self._kid, "x5t": self._kid})

    def caller(self, request: Request, *accepted_audiences: str) -> Principal:
        """Return the principal of a request's bearer token. Refuses with 401, in ARM's form."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            challenge = f'Bearer authorization_uri="https://{HOST}/{self._settings.tenant_id}", error="invalid_token"'
            headers = {"WWW-Authenticate": challenge}
            raise answers.arm(
                401, "AuthenticationFailed", "Authentication failed. The 'Authorization' header is missing.", headers
            )
        claims = self.verify(token, *accepted_audiences)
        if isinstance(claims, str):
            code = "ExpiredAuthenticationToken" if claims == "time" else "InvalidAuthenticationToken"
            raise answers.arm(401, code, f"The access token is invalid: wrong {claims}.")
        principal = self.principal_of(claims)
        if principal is None:
            raise answers.arm(401, "InvalidAuthenticationToken", "The access token's principal is no longer there.")
        return principal

    def principal_of(self, claims: Json) -> Principal | None:
        """Return whose token it is: a principal, or a user as one, with the client ID that the user signed in with."""
        user = self._state.users.get(claims["oid"])
        if user is not None and user.enabled:
            return Principal(user.object_id, claims["appid"], user.principal_name)
        return self._state.principals.get(claims["oid"])

    def verify(self, token: str, *accepted_audiences: str) -> Json | str:
        """Return the claims of a token for one of the audiences, or what is wrong: signature, audience or time."""
        spellings = {
            form for audience in accepted_audiences for form in (audience.rstrip("/"), audience.rstrip("/") + "/")
        }
        options: Any = {"verify_exp": False, "verify_nbf": False, "verify_iat": False, "verify_aud": False}
        try:
            claims: Json = jwt.decode(token, self._key.public_key(), ["RS256"], options=options)
        except jwt.InvalidTokenError:
            return "signature"
        if claims["aud"] not in spellings:
            return "audience"
        return claims if claims["nbf"] <= self._clock() < claims["exp"] else "time"

    async def serve(self, request: Request) -> Response:
        """Answer one request to the login host."""
        parts = [part for part in request.url.path.split("/") if part]
        path = "/".join(parts[1:]).lower()
        if path.endswith("discovery/instance"):
            return JSONResponse(self._instance(request))
        if path.endswith(".well-known/openid-configuration"):
            self._check_tenant(parts[0], any_tenant=True)
            return JSONResponse(self._configuration(parts[0], request, v2=path.startswith("v2.0")))
        if path.endswith(("discovery/v2.0/keys", "discovery/keys")):
            return JSONResponse(self.keys())
        if path.startswith("userrealm/"):
            return JSONResponse(user_tokens.realm(parts[-1]))
        if path in sign_in.PATHS:
            return await self.sign_in(request)
        if request.method == "POST" and path in {"oauth2/v2.0/token", "oauth2/token"}:
            if self._faults.entra_statuses:
                raise answers.entra_asked_for(self._faults.entra_statuses.pop(0), self._faults.headers())
            form = {name: values[0] for name, values in parse_qs((await request.body()).decode()).items()}
            await asyncio.sleep(self._faults.entra_seconds)
            request.state.resource = form.get("scope") or form.get("resource", "")
            return JSONResponse(await self._token(request, parts[0], form, v2="v2.0" in path))
        raise answers.entra(404, "invalid_request", 900144, f"There is nothing at {request.url.path}.")

    async def sign_in(self, request: Request) -> Response:
        """Answer a request about signing in with a browser."""
        parts = [part for part in request.url.path.split("/") if part]
        path = "/".join(parts[1:]).lower()
        if path not in sign_in.PATHS:
            raise answers.entra(404, "invalid_request", 900144, f"There is nothing at {request.url.path}.")
        self._check_tenant(parts[0], any_tenant=True)
        return await self.sign_ins.serve(request, path)

    async def _token(self, request: Request, tenant: str, form: Mapping[str, str], *, v2: bool) -> Json:
        if form.get("grant_type") in user_tokens.GRANTS | GRANTS:
            self._check_tenant(tenant, any_tenant=True)
            return await self._user_token(request, form, v2=v2)
        self._check_tenant(tenant)
        if form.get("grant_type") != "client_credentials":
            grants = ", ".join(sorted({"client_credentials"} | user_tokens.GRANTS | GRANTS))
            message = f"The app requested an unsupported grant type; the lab has {grants}."
            raise answers.entra(400, "unsupported_grant_type", 70003, message)
        principal = await self._authenticated(form)
        request.state.client_id = principal.client_id
        audience = _audience(form, v2=v2)
        audiences.check(self._state, principal, audience)
        seconds = MANAGED_LIFETIME_SECONDS if principal.resource_id else LIFETIME_SECONDS
        return self._answer(self.issue(principal, audience, seconds), audience, seconds, v2=v2)

    def _answer(self, token: str, audience: str, seconds: int, *, v2: bool) -> Json:
        if v2:
            lifetime = {"expires_in": seconds - 1, "ext_expires_in": seconds - 1}
            return {"token_type": "Bearer", **lifetime, "access_token": token}
        now = int(self._clock())
        times = {"expires_in": str(seconds - 1), "ext_expires_in": str(seconds - 1)}
        times |= {"expires_on": str(now + seconds), "not_before": str(now - _CLOCK_SKEW_SECONDS)}
        return {"token_type": "Bearer", **times, "resource": audience, "access_token": token}

    async def _user_token(self, request: Request, form: Mapping[str, str], *, v2: bool) -> Json:
        """Answer a user's password or refresh token with an access token, a refresh token and an ID token."""
        client_id = form.get("client_id", "")
        application = user_tokens.application(self._state, client_id)
        if application is None:
            raise answers.unknown_application(client_id)
        if not user_tokens.is_public(application):
            await self._check_proof(application, form)
        signing_in = self._sign_in_of(form, "scope" if v2 else "resource")
        user = signing_in.user
        audience, permission = user_tokens.resource_and_permission(
            signing_in.scope if v2 else f"{signing_in.scope}/.default"
        )
        request.state.client_id, request.state.name = client_id, user.principal_name
        audiences.check(self._state, application, audience)
        access_claims = {"aud": audience, **user_tokens.access_claims(user, client_id, permission)}
        issuer = f"https://sts.windows.net/{self._settings.tenant_id}/"
        token = self._sign({**access_claims, "iss": issuer, "ver": "1.0"}, LIFETIME_SECONDS)
        content = self._answer(token, audience, LIFETIME_SECONDS, v2=v2)
        permissions = " ".join(f"{audience}/{name}" for name in (*permission.split(), ".default"))
        content |= {"scope": permissions, "client_info": user_tokens.client_info(user, self._settings.tenant_id)}
        return content | self._lasting_tokens(user, client_id, signing_in.nonce)

    def _sign_in_of(self, form: Mapping[str, str], field: str) -> SignIn:
        """Return whose password, refresh token or code a form has, and for what. Refuses with 400."""
        if form["grant_type"] in GRANTS:
            signing_in = self.sign_ins.redeem(form)
            return dataclasses.replace(signing_in, scope=form.get(field) or signing_in.scope)
        if form["grant_type"] == "password":
            return SignIn(user_tokens.check_password(self._state, form), form.get(field, ""))
        claims = self.verify(form.get("refresh_token", ""), user_tokens.REFRESH_AUDIENCE)
        return SignIn(user_tokens.refreshed(self._state, claims), form.get(field, ""))

    def _lasting_tokens(self, user: User, client_id: str, nonce: str) -> Json:
        refresh_claims = {"aud": user_tokens.REFRESH_AUDIENCE, "oid": user.object_id, "iss": self._issuer}
        id_claims = {**user_tokens.id_claims(user, client_id), "iss": self._issuer, "ver": "2.0"}
        id_claims |= {"nonce": nonce} if nonce else {}
        return {
            "refresh_token": self._sign(refresh_claims, user_tokens.REFRESH_SECONDS),
            "id_token": self._sign(id_claims, LIFETIME_SECONDS),
        }

    def _check_tenant(self, tenant: str, *, any_tenant: bool = False) -> None:
        if tenant.lower() == self._settings.tenant_id.lower() or (any_tenant and tenant.lower() in _ANY_TENANT):
            return
        message = (
            f"Tenant '{tenant}' not found. Check to make sure you have the correct tenant ID and are signing into the "
            "correct cloud."
        )
        raise answers.entra(400, "invalid_request", 90002, message)

    async def _authenticated(self, form: Mapping[str, str]) -> Principal:
        client_id = form.get("client_id", "")
        principal = self._state.principal_of(client_id)
        if principal is None:
            raise answers.unknown_application(client_id)
        await self._check_proof(principal, form)
        if not principal.consented:
            message = (
                f"The user or administrator has not consented to use the application with ID '{client_id}' named "
                f"'{principal.name}'. Send an interactive authorization request for this user and resource."
            )
            raise answers.entra(400, "invalid_grant", 65001, message)
        return principal

    async def _check_proof(self, principal: Principal, form: Mapping[str, str]) -> None:
        if form.get("client_assertion"):
            await self._assertions.check(principal, form["client_assertion"], self._settings.tenant_id)
        else:
            _check_secret(principal, form.get("client_secret", ""))

    def _configuration(self, tenant: str, request: Request, *, v2: bool) -> Json:
        base = f"https://{request.headers['host']}"
        version = "/v2.0" if v2 else ""
        tenant_id = self._settings.tenant_id
        return {
            "token_endpoint": f"{base}/{tenant}/oauth2{version}/token",
            "token_endpoint_auth_methods_supported": ["client_secret_post", "private_key_jwt", "client_secret_basic"],
            "authorization_endpoint": f"{base}/{tenant}/oauth2{version}/authorize",
            "device_authorization_endpoint": f"{base}/{tenant}/oauth2{version}/devicecode",
            "jwks_uri": f"{base}/common/discovery/v2.0/keys",
            "issuer": f"{base}/{tenant_id}/v2.0" if v2 else f"https://sts.windows.net/{tenant_id}/",
            "response_types_supported": ["code", "id_token"],
            "subject_types_supported": ["pairwise"],
            "id_token_signing_alg_values_supported": ["RS256"],
            "tenant_region_scope": "EU",
            "cloud_instance_name": "microsoftonline.com",
            "cloud_graph_host_name": "graph.windows.net",
            "msgraph_host": "graph.microsoft.com",
        }

    def _instance(self, request: Request) -> Json:
        tenant, host = self._settings.tenant_id, request.headers["host"]
        aliases = [HOST, "login.windows.net", "login.microsoft.com", "sts.windows.net"]
        metadata = {"preferred_network": HOST, "preferred_cache": "login.windows.net", "aliases": aliases}
        endpoint = f"https://{host}/{tenant}/v2.0/.well-known/openid-configuration"
        return {"tenant_discovery_endpoint": endpoint, "api-version": "1.1", "metadata": [metadata]}

    def keys(self) -> Json:
        """Return the tenant's published key set."""
        public: Json = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(self._key.public_key()))
        names = {"use": "sig", "kid": self._kid, "x5t": self._kid, "alg": "RS256", "issuer": self._issuer}
        return {"keys": [{**public, **names}]}

    @property
    def _issuer(self) -> str:
        return f"https://{HOST}/{self._settings.tenant_id}/v2.0"


def _check_secret(principal: Principal, secret: str) -> None:
    if not secret:
        message = (
            "The request body must contain the following parameter: 'client_assertion' or 'client_secret', for the "
            "'client_credentials' grant type."
        )
        raise answers.entra(401, "invalid_client", 7000216, message)
    if not any(secrets.compare_digest(current.encode(), secret.encode()) for current in principal.secrets.values()):
        message = (
            "Invalid client secret provided. Ensure the secret being sent in the request is the client secret value, "
            f"not the client secret ID, for a secret added to app '{principal.client_id}'."
        )
        raise answers.entra(401, "invalid_client", 7000215, message)


def _audience(form: Mapping[str, str], *, v2: bool) -> str:
    if not v2:
        return form.get("resource", "")
    scope = form.get("scope", "")
    # MSAL for Go and for Java send `openid offline_access profile` beside the resource.
    resources = [item for item in scope.split() if item.lower() not in user_tokens.OPENID_SCOPES]
    if len(resources) != 1 or not resources[0].endswith("/.default"):
        message = f"The provided value for scope {scope} is not valid. Client credential flows must have a scope value "
        raise answers.entra(400, "invalid_scope", 1002012, message + "with /.default suffixed to the resource.")
    return resources[0].removesuffix("/.default")


def _signing_key(state: State) -> rsa.RSAPrivateKey:
    """Return the tenant's key, which is made once and kept in the state."""
    if "entra" not in state.keys:
        new_key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        pem = new_key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        state.keys |= {"entra": pem.decode(), "kid": secrets.token_hex(8)}
    key = serialization.load_pem_private_key(state.keys["entra"].encode(), None)
    if not isinstance(key, rsa.RSAPrivateKey):
        raise TypeError("the tenant signs with RSA")
    return key
