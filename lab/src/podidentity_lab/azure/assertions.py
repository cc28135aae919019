"""What an application shows instead of a secret: a JWT signed with its certificate, or another issuer's token.

Forms of the first: PS256 with x5t#S256 (azure-identity, msal) and RS256 with x5t, with or without x5c (azure-cli,
adal). The second must match one of the principal's federated credentials and verify against its issuer's published
keys. AADSTS numbers: learn.microsoft.com/entra/identity-platform/reference-error-codes.
"""

import base64
import datetime as dt
from collections.abc import Callable
from typing import Any

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from podidentity_lab.azure import answers
from podidentity_lab.azure.issuers import IssuerError, Issuers, KeySetError
from podidentity_lab.azure.state import FederatedCredential, Json, Principal

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
        if header.get("typ", "JWT") != "JWT":
            message = f"Invalid JWT token. The header type '{header['typ']}' is not supported; it must be 'JWT'."
            raise answers.entra(400, "invalid_request", 5002727, message)
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
        certificate = _certificate_of(principal, header)
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
        _check_record(principal, claims, self._clock())
        if header["alg"] != "RS256":
            message = (
                f"JWT token is invalid or malformed: the algorithm '{header['alg']}' is not supported, only RS256."
            )
            raise answers.entra(400, "invalid_request", 50027, message)
        self._check_time(claims)
        try:
            keys = await self._issuers.keys(str(claims["iss"]))
            jwt.decode(assertion, keys[str(header.get("kid"))].key, ["RS256"], options=_SIGNATURE_ONLY)
        except KeySetError as error:
            message = f"The key set of the external OIDC endpoint cannot be read. {error}"
            raise answers.entra(400, "invalid_request", 900612, message) from None
        except IssuerError as error:
            message = f"Request to External OIDC endpoint failed. {error}"
            raise answers.entra(400, "invalid_request", 501661, message) from None
        except (jwt.InvalidTokenError, KeyError):
            message = (
                f"Signature validation failed. The key with identifier '{header.get('kid')}' of the assertion is not "
                "among the keys that the issuer publishes, or does not verify it."
            )
            raise answers.entra(401, "invalid_client", 7000272, message) from None

    def _check_time(self, claims: Json) -> None:
        now = self._clock()
        begins, ends = float(claims.get("nbf") or claims.get("iat") or 0), float(claims.get("exp") or 0)
        if not begins - _SKEW_SECONDS <= now < ends + _SKEW_SECONDS:
            message = (
                "Client assertion is not within its valid time range. Current time: "
                f"{_moment(now)}, assertion valid from {_moment(begins)}, expiry time of assertion {_moment(ends)}."
            )
            raise answers.entra(401, "invalid_client", 700024, message)


def _check_record(principal: Principal, claims: Json, now: float) -> None:
    """Refuse unless issuer, audience and subject are those of one federated credential, letter for letter."""
    credentials = list(principal.federated.values())
    if not credentials:
        message = (
            f"The client '{principal.client_id}'({principal.name}) has no configured federated identity credentials."
        )
        raise answers.entra(401, "invalid_client", 70025, message)
    mismatch = _mismatch([credential for credential in credentials if credential.effective_at <= now], claims)
    if mismatch is None:
        return
    if _mismatch(credentials, claims) is None:
        message = "No matching federated identity record found for presented assertion."
        raise answers.entra(400, "invalid_request", 70021, message)
    number, name = mismatch
    value = claims.get({"issuer": "iss", "audience": "aud", "subject": "sub"}[name])
    message = (
        f"No matching federated identity record found for presented assertion {name} '{value}'. Check your "
        "federated identity credential Subject, Audience and Issuer against the presented assertion."
    )
    raise answers.entra(401, "invalid_client", number, message)


def _mismatch(credentials: list[FederatedCredential], claims: Json) -> tuple[int, str] | None:
    """Return the number and the name of the first claim that no credential has, or None."""
    claim = claims.get("aud")
    audiences = claim if isinstance(claim, list) else [claim]
    credentials = [credential for credential in credentials if credential.issuer == claims.get("iss")]
    if not credentials:
        return 700211, "issuer"
    credentials = [
        credential for credential in credentials if any(audience in credential.audiences for audience in audiences)
    ]
    if not credentials:
        return 700212, "audience"
    return None if any(credential.subject == claims.get("sub") for credential in credentials) else (700213, "subject")


def _certificate_of(principal: Principal, header: Json) -> x509.Certificate | None:
    """Return the registered certificate whose thumbprint the header gives; None without one."""
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
    return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%f0Z")
