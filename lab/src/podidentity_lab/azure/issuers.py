"""Where the keys of other token issuers come from: what they publish below `/.well-known/openid-configuration`.

The lab's own cluster publishes in this process; every other issuer is asked over HTTPS, and trusted when its
certificate is of the lab's authority: there is no way out of a lab. As Entra ID does, keys are kept for a while
(`Faults.issuer_keys_seconds`), and an unknown key ID does not make the lab fetch them again: an issuer that rotates its
keys must publish the next one that long before it signs with it.
"""

import ssl
from collections.abc import Callable
from typing import Any

import httpx2
import jwt

from podidentity_lab.azure.faults import Faults

FETCH_SECONDS = 10.0

Json = dict[str, Any]


class IssuerError(Exception):
    """An issuer's keys cannot be fetched; the message says why."""


class KeySetError(IssuerError):
    """What an issuer publishes is not a key set."""


class Issuers:
    """All issuers that a federated credential may name."""

    def __init__(self, ca_pem: Callable[[], bytes], faults: Faults, clock: Callable[[], float]) -> None:
        self._ca_pem = ca_pem
        self._faults = faults
        self._clock = clock
        self._published: dict[str, Callable[[], Json]] = {}
        self._cache: dict[str, tuple[float, jwt.PyJWKSet]] = {}

    def publish(self, issuer: str, keys: Callable[[], Json]) -> None:
        """Register an issuer of this process: `keys` returns its JSON Web Key Set."""
        self._published[issuer.rstrip("/")] = keys
        self._cache.clear()

    async def keys(self, issuer: str) -> jwt.PyJWKSet:
        """Return the issuer's keys as they were fetched last. Raises `IssuerError`."""
        since, keys = self._cache.get(issuer, (0.0, None))
        if keys is None or self._clock() >= since + self._faults.issuer_keys_seconds:
            keys = await self._read(issuer)
            self._cache[issuer] = (self._clock(), keys)
        return keys

    async def _read(self, issuer: str) -> jwt.PyJWKSet:
        publisher = self._published.get(issuer.rstrip("/"))
        key_set = publisher() if publisher else await self._fetch(issuer)
        try:
            return jwt.PyJWKSet.from_dict(key_set)
        except (jwt.PyJWTError, AttributeError, TypeError) as error:
            raise KeySetError(f"{issuer} publishes no key set: {error}.") from None

    async def _fetch(self, issuer: str) -> Json:
        if not issuer.startswith("https://"):
            raise IssuerError(f"The issuer '{issuer}' is no https URL.")
        trust = ssl.create_default_context(cadata=self._ca_pem().decode())
        try:
            async with httpx2.AsyncClient(verify=trust, trust_env=False, timeout=FETCH_SECONDS) as http:
                answer = await http.get(f"{issuer.rstrip('/')}/.well-known/openid-configuration")
                address = _key_set_address(issuer, answer.raise_for_status().json())
                text = (await http.get(address)).raise_for_status()
        except (httpx2.HTTPError, httpx2.InvalidURL, ValueError, KeyError, TypeError) as error:
            raise IssuerError(f"{issuer}: {type(error).__name__} {error}.") from None
        try:
            key_set: Json = text.json()
        except ValueError as error:
            raise KeySetError(f"{issuer} publishes no key set: {error}.") from None
        return key_set


def _key_set_address(issuer: str, document: Json) -> str:
    """Return where the keys are. Raises `IssuerError` for a document that Entra ID does not take."""
    if document.get("subject_types_supported", True) == [] or document.get("authorization_endpoint") == "":
        raise IssuerError(f"{issuer}: subject_types_supported or authorization_endpoint of its document is empty.")
    return str(document["jwks_uri"])
