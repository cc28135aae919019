"""Users who sign in with a browser: device codes, and the authorization code of a client on this machine.

The pages are at the login host, and at an address of the host's loopback where a browser outside of the lab finds them
(`Azure.serve_sign_in_at`). `entra` issues the tokens.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from podidentity_lab.azure import answers, authorization_codes, device_codes, sign_in_page, user_tokens
from podidentity_lab.azure.authorization_codes import Authorization, AuthorizationCodes
from podidentity_lab.azure.device_codes import DeviceCode, DeviceCodes
from podidentity_lab.azure.state import State, User

GRANTS = device_codes.GRANTS | {authorization_codes.GRANT}
DEVICE_PATH = "/common/oauth2/deviceauth"
_CODE_PATHS = ("oauth2/v2.0/devicecode", "oauth2/devicecode")
_AUTHORIZE_PATHS = ("oauth2/v2.0/authorize", "oauth2/authorize")
PATHS = frozenset({*_CODE_PATHS, *_AUTHORIZE_PATHS, "oauth2/deviceauth"})
"""Below a tenant."""
FORM_LIMIT_BYTES = 64 * 1024
_ENTER_CODE = "Enter the code that a program on your device shows."
_UNKNOWN_CODE = "That code didn't work: it is mistyped, was used, or is older than 15 minutes."


@dataclass(frozen=True, slots=True)
class SignIn:
    """A user who signed in, and what the client asked for: a v2 scope or a v1 resource, and a nonce or ""."""

    user: User
    scope: str
    nonce: str = ""


class SignIns:
    """The pages, and the codes that they lead to. `base` is the URL of the host at which users find the pages."""

    def __init__(self, state: State, clock: Callable[[], float], base: str) -> None:
        self.base = base
        self._state = state
        self._device_codes = DeviceCodes(clock)
        self._authorization_codes = AuthorizationCodes(clock)

    async def serve(self, request: Request, path: str) -> Response:
        """Answer a request for one of `PATHS`."""
        if path in _AUTHORIZE_PATHS:
            return await self._authorize(request, v2="v2.0" in path)
        if path in _CODE_PATHS:
            return self._issue(request, await _form(request), "scope" if "v2.0" in path else "resource")
        if request.method == "POST":
            return self._enter_code(request, await _own_form(request))
        return sign_in_page.form(_ENTER_CODE, {"user_code": request.query_params.get("otc", "")})

    def redeem(self, form: Mapping[str, str]) -> SignIn:
        """Return whose sign-in a client's form redeems. Refuses with 400."""
        if form["grant_type"] == authorization_codes.GRANT:
            code = self._authorization_codes.redeem(form)
            return SignIn(self._user(code.user_id), code.authorization.scope, code.authorization.nonce)
        device_code = self._device_codes.redeem(form)
        return SignIn(self._user(device_code.user_id), device_code.scope)

    def _user(self, user_id: str) -> User:
        return user_tokens.enabled(self._state.users.get(user_id))

    def _issue(self, request: Request, form: Mapping[str, str], field: str) -> Response:
        request.state.client_id, request.state.resource = form.get("client_id", ""), form.get(field, "")
        name = self._application_name(request.state.client_id)
        code = self._device_codes.issue(request.state.client_id, name, request.state.resource)
        url = f"{self.base}{DEVICE_PATH}"
        text = (
            f"To sign in, use a web browser to open the page {url} and enter the code {code.user_code} to authenticate."
        )
        fields = {"user_code": code.user_code, "device_code": code.device_code, "message": text}
        times = {"expires_in": device_codes.EXPIRY_SECONDS, "interval": device_codes.INTERVAL_SECONDS}
        if field == "scope":
            return JSONResponse({**fields, **times, "verification_uri": url})
        return JSONResponse({**fields, **{key: str(value) for key, value in times.items()}, "verification_url": url})

    def _application_name(self, client_id: str) -> str:
        application = user_tokens.application(self._state, client_id)
        if application is None:
            raise answers.unknown_application(client_id)
        return application.name

    def _enter_code(self, request: Request, form: Mapping[str, str]) -> Response:
        code = self._device_codes.find(form.get("user_code", ""))
        if code is None:
            return sign_in_page.form(_ENTER_CODE, {"user_code": "", **form}, _UNKNOWN_CODE)
        request.state.client_id = code.client_id
        if form.get("answer") == "decline":
            code.is_declined = True
            return sign_in_page.message("You declined the sign-in. You can close this window.")
        return self._sign_in_device(request, code, form)

    def _sign_in_device(self, request: Request, code: DeviceCode, form: Mapping[str, str]) -> Response:
        try:
            user = user_tokens.check_password(self._state, form)
        except answers.Refusal as refusal:
            explanation = f"You are signing in to {code.application_name} on another device."
            return sign_in_page.form(explanation, form, answers.description(refusal))
        code.user_id = user.object_id
        request.state.name = user.principal_name
        return sign_in_page.message(f"You have signed in to {code.application_name}. You can close this window.")

    async def _authorize(self, request: Request, *, v2: bool) -> Response:
        query = request.query_params
        authorization = Authorization.of_query(query, query.get("scope" if v2 else "resource", ""))
        request.state.client_id, request.state.resource = authorization.client_id, authorization.scope
        name = self._application_name(authorization.client_id)
        authorization.check()
        if query.get("response_type", "code") != "code":
            error = "AADSTS70005: response_type is not supported by the lab; ask for code."
            return _send(authorization, {"error": "unsupported_response_type", "error_description": error})
        if query.get("prompt") == "none":
            error = "AADSTS50058: A silent sign-in request was sent but no user is signed in."
            return _send(authorization, {"error": "login_required", "error_description": error})
        explanation = f"{name} wants you to sign in."
        if request.method != "POST":
            return sign_in_page.form(explanation, {"username": query.get("login_hint", "")})
        form = await _own_form(request)
        if form.get("answer") == "decline":
            error = "AADSTS65004: The user declined to consent to access the app."
            return _send(authorization, {"error": "access_denied", "error_description": error})
        try:
            user = user_tokens.check_password(self._state, form)
        except answers.Refusal as refusal:
            return sign_in_page.form(explanation, {"username": form.get("username", "")}, answers.description(refusal))
        request.state.name = user.principal_name
        return _send(authorization, {"code": self._authorization_codes.issue(authorization, user.object_id).text})


def _send(authorization: Authorization, fields: Mapping[str, str]) -> Response:
    """Return what takes a browser back to the client."""
    content = {**fields, **({"state": authorization.state} if authorization.state else {})}
    if authorization.mode == "form_post":
        return sign_in_page.posting(authorization.redirect_uri, content)
    return RedirectResponse(authorization.location(content), 302, {"Cache-Control": "no-store"})


async def _own_form(request: Request) -> Mapping[str, str]:
    """Return the fields of a form that our own page has sent; refuses with 403 those of any other page."""
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc.lower() != request.headers.get("host", "").lower():
        raise answers.Refusal(sign_in_page.message("Another page has sent this form: open the page yourself.", 403))
    return await _form(request)


async def _form(request: Request) -> Mapping[str, str]:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > FORM_LIMIT_BYTES:
            raise answers.entra(413, "invalid_request", 90015, "The request is too long.")
    return {name: values[0] for name, values in parse_qs(body.decode()).items()}
