"""What an application shows instead of a secret: a JWT signed with its certificate, or another issuer's token.

Forms of the first: PS256 with x5t#S256 (azure-identity, msal) and RS256 with x5t, with or without x5c (azure-cli,
adal). The second must match one of the principal's federated credentials and verify against its issuer's published
keys. Called by `entra`; the numbers are learn.microsoft.com/entra/identity-platform/reference-error-codes'.
"""

import base64
import datetime as dt
from collections.abc import Callable
from typing import Any

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from podidentity.lab.azure import answers
from podidentity.lab.azure.issuers import IssuerError, Issuers
from podidentity.lab.azure.state import Json, Principal

FEDERATED_CREDENTIALS = 20
"""At most so many for one application or identity."""
_SKEW_SECONDS = 300
_UNCHECKED: Any = {"verify_signature": False}
_SIGNATURE_ONLY: Any = {"verify_exp": False, "verify_nbf": False, "verify_iat": False, "verify_aud": False}


class Assertions:
    """Judges client assertions."""

    def __init__(self, issuers: Issuers, clock: Callable[[], float]) -> None:
        self._issuers = issuers
        self._clock = clock

    async def check(self, principal: Principal, assertion: str, tenant: str) -> None:
        """Refuse unless `assertion` proves that its sender is `principal`."""
        try:
            header = jwt.get_unverified_header(assertion)
            claims: Json = jwt.decode(assertion, options=_UNCHECKED)
        except jwt.InvalidTokenError as error:
            raise answers.entra(400, "invalid_request", 50027, f"JWT token is invalid or malformed: {error}.") from None
        if str(claims.get("iss", "")).lower() == principal.client_id.lower():
            self._check_own(principal, assertion, header, claims, tenant)
        else:
            await self._check_federated(principal, assertion, header, claims)

    def _check_own(self, principal: Principal, assertion: str, header: Json, claims: Json, tenant: str) -> None:
        if str(claims.get("sub", "")).lower() != principal.client_id.lower():
            message = "Client assertion application identifier doesn't match 'client_id' parameter."
            raise answers.entra(401, "invalid_client", 700021, message)
        if tenant.lower() not in str(claims.get("aud", "")).lower():
            message = f"Client assertion audience claim does not match Realm issuer; it is '{claims.get('aud')}'."
            raise answers.entra(401, "invalid_client", 700023, message)
        self._check_time(claims)
        certificate = _named(principal, header)
        if certificate is None:
            raise _signature("The key was not found.")
        if certificate.not_valid_after_utc <= dt.datetime.fromtimestamp(self._clock(), dt.UTC):
            raise _signature("The key used is expired.")
        key: Any = certificate.public_key()
        try:
            jwt.decode(assertion, key, ["PS256", "RS256"], options=_SIGNATURE_ONLY)
        except jwt.InvalidTokenError:
            raise _signature("The key was found, but use of the key to verify the signature failed.") from None

    async def _check_federated(self, principal: Principal, assertion: str, header: Json, claims: Json) -> None:
        _check_record(principal, claims)
        self._check_time(claims)
        try:
            keys = await self._issuers.keys(str(claims["iss"]))
            jwt.decode(assertion, keys[str(header.get("kid"))].key, ["RS256", "ES256"], options=_SIGNATURE_ONLY)
        except IssuerError as error:
            raise answers.entra(
                400, "invalid_request", 50166, f"Request to External OIDC endpoint failed. {error}"
            ) from None
        except (jwt.InvalidTokenError, KeyError):
            message = "Assertion failed signature validation: the issuer's published keys do not verify it."
            raise answers.entra(401, "invalid_client", 50013, message) from None

    def _check_time(self, claims: Json) -> None:
        now = self._clock()
        begins, ends = float(claims.get("nbf") or claims.get("iat") or 0), float(claims.get("exp") or 0)
        if not begins - _SKEW_SECONDS <= now < ends + _SKEW_SECONDS:
            message = (
                "Client assertion is not within its valid time range. Current time: "
                f"{_moment(now)}, assertion valid from {_moment(begins)}, expiry time of assertion {_moment(ends)}."
            )
            raise answers.entra(401, "invalid_client", 700024, message)


def _check_record(principal: Principal, claims: Json) -> None:
    """Issuer, audience and subject must be those of one federated credential, letter for letter."""
    given = claims.get("aud")
    audience = given if isinstance(given, list) else [given]
    left = list(principal.federated.values())
    for number, what, shown, fits in (
        (700211, "issuer", claims.get("iss"), lambda one: one.issuer == claims.get("iss")),
        (700212, "audience", given, lambda one: bool(set(one.audiences) & set(audience))),
        (700213, "subject", claims.get("sub"), lambda one: one.subject == claims.get("sub")),
    ):
        left = [one for one in left if fits(one)]
        if not left:
            message = (
                f"No matching federated identity record found for presented assertion {what} '{shown}'. Check your "
                "federated identity credential Subject, Audience and Issuer against the presented assertion."
            )
            raise answers.entra(401, "invalid_client", number, message)


def _named(principal: Principal, header: Json) -> x509.Certificate | None:
    """The registered certificate whose thumbprint the header gives."""
    for text in principal.certificates:
        certificate = x509.load_pem_x509_certificate(text.encode())
        forms = {"x5t#S256": hashes.SHA256(), "x5t": hashes.SHA1()}  # noqa: S303  # x5t is SHA-1 by RFC 7515
        for name, algorithm in forms.items():
            if header.get(name, "").rstrip("=") == _thumbprint(certificate, algorithm):
                return certificate
    return None


def _thumbprint(certificate: x509.Certificate, algorithm: hashes.HashAlgorithm) -> str:
    return base64.urlsafe_b64encode(certificate.fingerprint(algorithm)).decode().rstrip("=")


def _signature(reason: str) -> answers.Refusal:
    message = f"Client assertion failed signature validation. [Reason - {reason}]"
    return answers.entra(401, "invalid_client", 700027, message)


def _moment(seconds: float) -> str:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat()
