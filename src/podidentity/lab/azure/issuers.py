"""Where the keys of other token issuers come from: what they publish below `/.well-known/openid-configuration`.

The lab's own cluster publishes in this process; every other issuer is asked over HTTPS, and trusted when its
certificate is of the lab's authority: there is no way out of a lab. Called by `assertions`.
"""

import ssl
from collections.abc import Callable
from typing import Any

import httpx2
import jwt

FETCH_SECONDS = 10.0

Json = dict[str, Any]


class IssuerError(Exception):
    """An issuer's keys cannot be had; the sentence says why."""


class Issuers:
    """All issuers that a federated credential may name."""

    def __init__(self, ca_pem: Callable[[], bytes]) -> None:
        self._ca_pem = ca_pem
        self._published: dict[str, Callable[[], Json]] = {}

    def publish(self, issuer: str, keys: Callable[[], Json]) -> None:
        """Let an issuer inside this process be found: `keys` gives its JSON Web Key Set."""
        self._published[issuer.rstrip("/")] = keys

    async def keys(self, issuer: str) -> jwt.PyJWKSet:
        """The issuer's keys. Raises `IssuerError`."""
        own = self._published.get(issuer.rstrip("/"))
        try:
            return jwt.PyJWKSet.from_dict(own() if own else await self._fetch(issuer))
        except jwt.PyJWTError as error:
            raise IssuerError(f"{issuer} publishes no key set: {error}.") from None

    async def _fetch(self, issuer: str) -> Json:
        if not issuer.startswith("https://"):
            raise IssuerError(f"The issuer '{issuer}' is no https URL.")
        trust = ssl.create_default_context(cadata=self._ca_pem().decode())
        try:
            async with httpx2.AsyncClient(verify=trust, trust_env=False, timeout=FETCH_SECONDS) as http:
                found = await http.get(f"{issuer.rstrip('/')}/.well-known/openid-configuration")
                keys = await http.get(str(found.raise_for_status().json()["jwks_uri"]))
                published: Json = keys.raise_for_status().json()
                return published
        except (httpx2.HTTPError, ValueError, KeyError, TypeError) as error:
            raise IssuerError(f"{issuer}: {type(error).__name__} {error}.") from None
