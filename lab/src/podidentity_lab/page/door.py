"""Which requests to the page are its user's: the token of the URL, the host that was meant, the page that sends.

Other users of the machine can reach the port, so a secret is needed, and what runs as them is refused even with it:
command lines, in which the URL stands while a browser starts, are everybody's to read. A browser can be led to the page
by a foreign one: by a name that resolves to 127.0.0.1 (the Host header tells), or by a form, a script or a link
(SameSite, and the headers Origin and Sec-Fetch-Site, because a site is the same whatever its port). Browsers send the
cookie to whatever serves another port of this host, but only below its path, which nobody else knows. RFC 6265bis
sections 5.1.4 and 5.2, Fetch section 3.1, Fetch Metadata section 2.
"""

import hmac
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE = "podidentity_lab"
TOKEN_BYTES = 32
FOLDER_BYTES = 16
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # without any referrer, forms would be sent with `Origin: null`
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_OTHER_USER = "this page is another user's: open one of your own with `podidentity lab open`\n"
_OTHER_ADDRESS = "this is not the page's address: open the one that `podidentity lab open` printed\n"

End = tuple[str, int]
IsWelcome = Callable[[End, End], bool]
"""Whether a connection is of a user who may have the page, by its ends: the client's, then ours."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a page is, and its secrets: the token, and the folder that keeps the cookie from other ports."""

    port: int
    token: str = field(default_factory=lambda: secrets.token_urlsafe(TOKEN_BYTES), repr=False)
    folder: str = field(default_factory=lambda: secrets.token_urlsafe(FOLDER_BYTES), repr=False)

    @property
    def path(self) -> str:
        """The path of the page; everything else is below it."""
        return f"/{self.folder}/"

    @property
    def url(self) -> str:
        """The URL to open; whoever has it has the page."""
        return f"http://127.0.0.1:{self.port}{self.path}?token={self.token}"

    @property
    def cookie(self) -> str:
        """The header that hands the token to a browser."""
        return f"{COOKIE}={self.token}; Path={self.path}; HttpOnly; SameSite=Strict"

    @property
    def hosts(self) -> tuple[str, ...]:
        """The Host headers of requests that mean this page."""
        return f"127.0.0.1:{self.port}", f"localhost:{self.port}"


def is_meant(address: Address, method: str, headers: Headers) -> bool:
    """Whether a request means this host and, where it changes something, was sent by this page itself."""
    host = headers.get("host", "")
    if host not in address.hosts:
        return False
    return method in ("GET", "HEAD") or headers.get("origin") == f"http://{host}"


def is_own(headers: Headers) -> bool:
    """Whether the page itself, its user or a program that is no browser made a request, and no other page."""
    return headers.get("sec-fetch-site", "none") in ("none", "same-origin")


def is_token(address: Address, text: str) -> bool:
    """Whether a text is the secret."""
    return hmac.compare_digest(text.encode(), address.token.encode())


class Door:
    """An application that lets only its user's requests in, and adds the headers that keep everything else out."""

    def __init__(self, app: ASGIApp, address: Address, is_welcome: IsWelcome) -> None:
        self._app = app
        self._address = address
        self._is_welcome = is_welcome

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":  # a WebSocket, which any page may try to open
            await send({"type": "websocket.close"})
            return
        request = Request(scope, receive)
        is_new = self._is_visit(request)
        refusal = self._refusal(request, is_new=is_new)

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(_HEADERS)
                if is_new and not refusal:
                    headers.append("Set-Cookie", self._address.cookie)
            await send(message)

        app = PlainTextResponse(refusal, 403) if refusal else self._app
        await app(scope, receive, send_guarded)

    def _is_visit(self, request: Request) -> bool:
        """Whether somebody opens the URL, perhaps from another page."""
        return request.scope["path"] == self._address.path and is_token(
            self._address, request.query_params.get("token", "")
        )

    def _refusal(self, request: Request, *, is_new: bool) -> str:
        """Return why a request is refused, or ""."""
        client, server = request.scope.get("client"), request.scope.get("server")
        if not client or not server or not self._is_welcome(tuple(client), tuple(server)):
            return _OTHER_USER
        is_known = is_own(request.headers) and is_token(self._address, request.cookies.get(COOKIE, ""))
        if is_meant(self._address, request.method, request.headers) and (is_new or is_known):
            return ""
        return _OTHER_ADDRESS
