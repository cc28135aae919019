"""What the broker answers: tokens, errors and discovery documents, as Entra ID writes them.

SDKs of Python and JavaScript show `error_description` to their users, so that it says what to do.
"""

import json
import re

from podidentity.core.exchange.requests import Refusal
from podidentity.core.tokens.imds import Token
from podidentity.errors import AzureError

_CODE = re.compile(r"AADSTS(\d{4,8})")
_PUBLIC_HOST = "login.microsoftonline.com"
_PUBLIC_ALIASES = (_PUBLIC_HOST, "login.windows.net", "login.microsoft.com", "sts.windows.net")
"""Names that MSAL takes for the same authority."""
SPREAD_CODES = frozenset({70021, 700211, 700212, 700213})
"""Entra ID knows no federated credential that fits: it is missing, or was created or changed a moment ago."""
_NO_CREDENTIALS = 70025
"""The identity has no federated credential at all."""
_UNAVAILABLE = 503
_BAD_GATEWAY = 502
_SHORTEST_PAUSE_SECONDS = 1.0


def token_document(token: Token, now: float) -> bytes:
    """Return the answer with a token; `now` is in seconds since 1970."""
    seconds = max(0, token.expires_on - int(now))
    document = {
        "token_type": "Bearer",
        "expires_in": seconds,
        "ext_expires_in": seconds,
        "access_token": token.access_token,
    }
    return json.dumps(document).encode()


def error_document(refusal: Refusal, trace_id: str, timestamp: str) -> bytes:
    """Return the answer of a refusal. `trace_id` is this request's own name, as it stands in the broker's log."""
    document = {
        "error": refusal.code,
        "error_description": refusal.message,
        "error_codes": list(refusal.codes),
        "timestamp": timestamp,
        "trace_id": trace_id,
    }
    return json.dumps(document).encode()


def codes_of(error: AzureError) -> tuple[int, ...]:
    """Return the numbers in Entra ID's words, such as 700213 of `AADSTS700213: ...`."""
    return tuple(int(code) for code in _CODE.findall(str(error)))


def refusal_of(error: AzureError, credential: str) -> Refusal:
    """Return what a caller is told when Entra ID gives the broker no token.

    `credential` says what a federated credential for the broker must name.
    """
    codes = codes_of(error)
    message = str(error)
    if {*SPREAD_CODES, _NO_CREDENTIALS} & set(codes):
        message += f" (the identity needs a federated credential for the broker: {credential})"
    if error.status == 0:
        pause = error.retry_after_seconds or _SHORTEST_PAUSE_SECONDS
        return Refusal(_UNAVAILABLE, "temporarily_unavailable", message, pause, codes)
    status = error.status if error.status >= 400 else _BAD_GATEWAY  # noqa: PLR2004  # a 200 that is no token
    return Refusal(status, error.code or "server_error", message, error.retry_after_seconds, codes)


def configuration_document(authority: str, tenant_id: str) -> bytes:
    """Return the tenant's openid-configuration. `authority` is `https://HOST` of the cloud's Entra ID.

    Only the path of `token_endpoint` survives in a client that goes through a token proxy; host and issuer are compared
    with the authority that it was configured with.
    """
    base = f"{authority}/{tenant_id}"
    document = {
        "token_endpoint": f"{base}/oauth2/v2.0/token",
        "token_endpoint_auth_methods_supported": ["private_key_jwt"],
        "authorization_endpoint": f"{base}/oauth2/v2.0/authorize",
        "jwks_uri": f"{base}/discovery/v2.0/keys",
        "issuer": f"{base}/v2.0",
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["pairwise"],
        "id_token_signing_alg_values_supported": ["RS256"],
    }
    return json.dumps(document).encode()


def instance_document(authority: str, tenant_id: str) -> bytes:
    """Return the answer to the question which authorities are known: this one, under all its names."""
    host = authority.removeprefix("https://")
    aliases = _PUBLIC_ALIASES if host == _PUBLIC_HOST else (host,)
    document = {
        "tenant_discovery_endpoint": f"{authority}/{tenant_id}/v2.0/.well-known/openid-configuration",
        "api-version": "1.1",
        "metadata": [
            {"preferred_network": host, "preferred_cache": aliases[min(1, len(aliases) - 1)], "aliases": list(aliases)}
        ],
    }
    return json.dumps(document).encode()
