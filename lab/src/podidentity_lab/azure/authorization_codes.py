"""Authorization codes: a user signs in with a browser, which carries a code to the client that opened it.

Protocol: RFC 6749 section 4.1, RFC 7636 (PKCE), RFC 8252 section 7.3 (clients on loopback) and
learn.microsoft.com/entra/identity-platform/v2-oauth2-auth-code-flow; AADSTS numbers: .../reference-error-codes.
The lab's applications have no redirect URIs of their own: loopback is everybody's, and nothing else is anybody's.
"""

import base64
import hashlib
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlencode, urlsplit

from podidentity.bounded import BoundedDict
from podidentity_lab.azure import answers

GRANT = "authorization_code"
EXPIRY_SECONDS = 600
CODES_LIMIT = 1_000
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class Authorization:
    """What a client asks for. `challenge` and `method` are PKCE's, empty without; `mode` is its `response_mode`."""

    client_id: str
    redirect_uri: str
    scope: str
    state: str = ""
    nonce: str = ""
    challenge: str = ""
    method: str = ""
    mode: str = "query"

    @classmethod
    def of_query(cls, query: Mapping[str, str], scope: str) -> "Authorization":
        """Return what a request to `authorize` says."""
        return cls(
            client_id=query.get("client_id", ""),
            redirect_uri=query.get("redirect_uri", ""),
            scope=scope,
            state=query.get("state", ""),
            nonce=query.get("nonce", ""),
            challenge=query.get("code_challenge", ""),
            method=query.get("code_challenge_method", "plain"),
            mode=query.get("response_mode", "query"),
        )

    def check(self) -> None:
        """Refuse with 400 to send anybody anywhere but to a program of the same machine."""
        parts = urlsplit(self.redirect_uri)
        if parts.scheme != "http" or parts.hostname not in _LOOPBACK or parts.username is not None:
            message = (
                f"The redirect URI '{self.redirect_uri}' specified in the request does not match the redirect URIs "
                f"configured for the application '{self.client_id}'. In the lab these are http://localhost and "
                "http://127.0.0.1, with any port and path."
            )
            raise answers.entra(400, "invalid_request", 50011, message)

    def location(self, fields: Mapping[str, str]) -> str:
        """Return the redirect URI with fields in its query."""
        separator = "&" if urlsplit(self.redirect_uri).query else "?"
        return f"{self.redirect_uri}{separator}{urlencode(fields)}"


@dataclass(frozen=True, slots=True)
class AuthorizationCode:
    """A code that a browser carries. `user_id` is the object ID of whoever signed in, `expires_at` in Unix seconds."""

    authorization: Authorization
    user_id: str
    expires_at: float
    text: str = field(default_factory=lambda: secrets.token_urlsafe(64), repr=False)


class AuthorizationCodes:
    """The codes that were not redeemed yet. An old one gives way when there are too many."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._by_text: BoundedDict[str, AuthorizationCode] = BoundedDict(CODES_LIMIT)

    def issue(self, authorization: Authorization, user_id: str) -> AuthorizationCode:
        """Return a new code."""
        code = AuthorizationCode(authorization, user_id, self._clock() + EXPIRY_SECONDS)
        self._by_text[code.text] = code
        return code

    def redeem(self, form: Mapping[str, str]) -> AuthorizationCode:
        """Return the code of a client's form, and forget it whatever comes of it. Refuses with 400."""
        code = self._by_text.pop(form.get("code", ""), None)
        if code is None:
            raise _refusal(54005, "OAuth2 Authorization code was already redeemed, or is none; sign in again.")
        if self._clock() >= code.expires_at:
            raise _refusal(70008, "The provided authorization code has expired; sign in again.")
        if code.authorization.client_id.lower() != form.get("client_id", "").lower():
            raise _refusal(700005, "The provided authorization code is intended to use against another client.")
        if code.authorization.redirect_uri != form.get("redirect_uri", ""):
            raise _refusal(50011, "The reply URL is not the one with which the code was requested.")
        if code.authorization.challenge and not _is_verified(code.authorization, form.get("code_verifier", "")):
            raise _refusal(501481, "The Code_Verifier does not match the code_challenge of the authorization request.")
        return code


def _is_verified(authorization: Authorization, verifier: str) -> bool:
    text = verifier
    if authorization.method == "S256":
        digest = hashlib.sha256(verifier.encode()).digest()
        text = base64.urlsafe_b64encode(digest).decode().rstrip("=")
    return secrets.compare_digest(text.encode(), authorization.challenge.encode())


def _refusal(number: int, message: str) -> answers.Refusal:
    return answers.entra(400, "invalid_grant", number, message)
