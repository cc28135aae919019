"""Which requests to the page are its user's: the token of the URL, the host that was meant, the page that sends.

Other users of the machine can reach the port, so a secret is needed. A browser can be led to it by a foreign page:
by a name that resolves to 127.0.0.1 (the Host header tells), or by a form (SameSite, and the Origin header, because a
site is the same whatever its port). RFC 6265bis section 5.2, Fetch section 3.1.
"""

import hmac
import secrets
from dataclasses import dataclass, field

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

TOKEN_BYTES = 32
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
_REFUSAL = "this is not the page's address: open the one that `podidentity lab open` printed\n"


@dataclass(frozen=True, slots=True)
class Address:
    """Where a page is, and its secret. Browsers do not tell ports apart where cookies go, so the cookie's name does."""

    port: int
    token: str = field(default_factory=lambda: secrets.token_urlsafe(TOKEN_BYTES), repr=False)

    @property
    def url(self) -> str:
        """The URL to open; whoever has it has the page."""
        return f"http://127.0.0.1:{self.port}/?token={self.token}"

    @property
    def cookie(self) -> str:
        """The name of the cookie that holds the secret after the first visit."""
        return f"podidentity_lab_{self.port}"

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


def is_token(address: Address, text: str) -> bool:
    """Whether a text is the secret."""
    return hmac.compare_digest(text.encode(), address.token.encode())


class Door:
    """An application that lets only its user's requests in, and adds the headers that keep everything else out."""

    def __init__(self, app: ASGIApp, address: Address) -> None:
        self._app = app
        self._address = address

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        request = Request(scope, receive)
        token = request.query_params.get("token", "") if request.url.path == "/" else ""
        is_new = is_token(self._address, token)
        is_known = is_token(self._address, request.cookies.get(self._address.cookie, ""))

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(_HEADERS)
                if is_new:
                    headers.append("Set-Cookie", self._cookie())
            await send(message)

        if not is_meant(self._address, request.method, request.headers) or not (is_new or is_known):
            is_new = False
            await _refusal()(scope, receive, send_guarded)
            return
        await self._app(scope, receive, send_guarded)

    def _cookie(self) -> str:
        return f"{self._address.cookie}={self._address.token}; Path=/; HttpOnly; SameSite=Strict"


def _refusal() -> Response:
    return PlainTextResponse(_REFUSAL, 403)
