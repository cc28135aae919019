"""Users sign in with a browser: device codes and authorization codes, by MSAL and azure-identity as they are."""

import base64
import contextlib
import hashlib
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx2
import jwt
import msal
import pytest

from daemons.lab_azure.management import SCOPE
from podidentity_lab.azure import Azure, AzureSettings
from podidentity_lab.azure.device_codes import EXPIRY_SECONDS
from serving import served as served_at

Send = Callable[..., httpx2.Response]
LOGIN = "https://login.microsoftonline.com"
AZ = "04b07795-8ddb-461a-bbee-02f9e1bf7b46"
NAME, PASSWORD = "ada@lab.test", "not-a-real-one"
SIGN_IN = {"username": NAME, "password": PASSWORD, "answer": "sign-in"}
REDIRECT = "http://localhost:12345/back"


class Clock:
    """A clock that a test sets forward."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        """Return the time in Unix seconds."""
        return time.time() + self.ahead


@pytest.fixture
def clock() -> Clock:
    """The clock of the tenant."""
    return Clock()


@pytest.fixture
def azure(clock: Clock) -> Azure:
    """A tenant on that clock."""
    return Azure(AzureSettings(), clock)


@pytest.fixture(autouse=True)
def ada(ask: Callable[..., httpx2.Response]) -> str:
    """The object ID of a user with a password."""
    body = {"displayName": "Ada", "userPrincipalName": NAME, "passwordProfile": {"password": PASSWORD}}
    return str(ask("POST", "/users", body).json()["id"])


class Sender:
    """What MSAL sends requests with: it reaches the tenant's names on loopback."""

    def __init__(self, send: Send) -> None:
        self._send = send

    def post(self, url: str, params: Any = None, data: Any = None, headers: Any = None, **_: Any) -> httpx2.Response:
        """POST a form."""
        return self._send("POST", url, params=params, data=data, headers=headers or {})

    def get(self, url: str, params: Any = None, headers: Any = None, **_: Any) -> httpx2.Response:
        """GET."""
        return self._send("GET", url, params=params, headers=headers or {})

    def close(self) -> None:
        """MSAL calls it."""


@pytest.fixture
def application(azure: Azure, send: Send) -> msal.PublicClientApplication:
    """MSAL as azure-cli has it."""
    authority = f"{LOGIN}/{azure.settings.tenant_id}"
    return msal.PublicClientApplication(AZ, authority=authority, http_client=Sender(send))


@pytest.fixture
def device(send: Send) -> Callable[..., httpx2.Response]:
    """Return a function that sends what a device sends: the request for a code, then a poll for the token."""

    def device(path: str, **fields: str) -> httpx2.Response:
        return send("POST", f"{LOGIN}/organizations/oauth2/{path}", data={"client_id": AZ, **fields})

    return device


def poll(device: Callable[..., httpx2.Response], code: str, **fields: str) -> tuple[int, str, int]:
    """Return the status, error and AADSTS number of a poll; 0 when it is a token."""
    grant = {"grant_type": "urn:ietf:params:oauth:grant-type:device_code", "device_code": code}
    answer = device("v2.0/token", **{**grant, **fields})
    content = answer.json()
    return answer.status_code, content.get("error", ""), content.get("error_codes", [0])[0]


def enter(send: Send, code: str, **fields: str) -> httpx2.Response:
    """Enter a code on the page, as the user's browser does."""
    return send("POST", f"{LOGIN}/common/oauth2/deviceauth", data={"user_code": code, **SIGN_IN, **fields})


def test_msal_signs_a_user_in_by_a_device_code(application: msal.PublicClientApplication, send: Send, ada: str) -> None:
    """MSAL polls while the user enters the code; then it has the user's tokens, and refreshes them in silence."""
    flow = application.initiate_device_flow([SCOPE])
    assert (flow["interval"], flow["expires_in"]) == (5, 900)
    assert all(text in flow["message"] for text in (flow["user_code"], flow["verification_uri"]))
    flow["interval"] = 1  # the test need not wait for five
    asked: list[str] = []

    def ask_again(flow: dict[str, Any]) -> bool:
        if asked:
            enter(send, flow["user_code"])
        asked.append(flow["user_code"])
        return False

    tokens = application.acquire_token_by_device_flow(flow, exit_condition=ask_again)
    claims = jwt.decode(tokens["access_token"], options={"verify_signature": False})
    assert (claims["oid"], claims["upn"], claims["appid"]) == (ada, NAME, AZ)
    assert claims["aud"] == SCOPE.removesuffix("/.default")
    assert len(asked) >= 2
    account = application.get_accounts()[0]
    assert account["username"] == NAME
    assert "access_token" in application.acquire_token_silent([SCOPE], account, force_refresh=True)


def test_what_a_device_is_told_meanwhile(
    send: Send, device: Callable[..., httpx2.Response], clock: Clock, azure: Azure
) -> None:
    """Pending, declined, expired, used, unknown, another client's: each has the error that clients act upon."""
    codes = [device("v2.0/devicecode", scope=SCOPE).json() for _ in range(4)]
    first, declined, late, foreign = codes
    assert len({code["user_code"] for code in codes}) == 4
    assert poll(device, first["device_code"]) == (400, "authorization_pending", 70016)
    assert enter(send, declined["user_code"], answer="decline").status_code == 200
    assert poll(device, declined["device_code"]) == (400, "authorization_declined", 65004)
    typed = f" {first['user_code'][:4].lower()}-{first['user_code'][4:]} "
    assert enter(send, typed).status_code == 200
    assert poll(device, first["device_code"], client_id=azure.settings.owner.client_id)[0] == 401
    assert poll(device, foreign["device_code"], client_id="1950a258-227b-4e31-a9cf-717495945fc2")[1:] == (
        "bad_verification_code",
        70018,
    )
    assert poll(device, first["device_code"]) == (200, "", 0)
    assert poll(device, first["device_code"]) == (400, "bad_verification_code", 70018)
    assert poll(device, "none") == (400, "bad_verification_code", 70018)
    clock.ahead = EXPIRY_SECONDS + 1
    assert enter(send, late["user_code"]).status_code == 400
    assert poll(device, late["device_code"]) == (400, "expired_token", 70020)
    assert device("v2.0/devicecode", client_id=str(uuid.uuid4())).json()["error_codes"] == [700016]
    assert send("POST", f"{LOGIN}/{uuid.uuid4()}/oauth2/v2.0/devicecode", data={"client_id": AZ}).status_code == 400


def test_version_1_has_a_resource_and_texts(send: Send, device: Callable[..., httpx2.Response]) -> None:
    """The endpoints of v1 take a resource, call the page `verification_url` and write numbers as texts."""
    answer = device("devicecode", resource="https://vault.azure.net").json()
    assert (answer["expires_in"], answer["interval"], answer["verification_url"][:5]) == ("900", "5", "https")
    enter(send, answer["user_code"])
    tokens = device("token", grant_type="device_code", code=answer["device_code"]).json()
    assert tokens["resource"] == "https://vault.azure.net"


def test_what_the_page_says(
    send: Send, device: Callable[..., httpx2.Response], ask: Callable[..., httpx2.Response]
) -> None:
    """A wrong code, a wrong password, a disabled user: the form comes again with the reason; texts are escaped."""
    code = device("v2.0/devicecode", scope=SCOPE).json()
    shown = send("GET", f"{LOGIN}/common/oauth2/deviceauth?otc=<script>")
    assert (shown.status_code, "<script>" in shown.text, "&lt;script&gt;" in shown.text) == (200, False, True)
    policy = shown.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy  # noqa: PT018
    for fields, expected in (
        ({"user_code": "WRONG<b>"}, "That code didn&#x27;t work"),
        ({"password": "wrong"}, "AADSTS50126"),
        ({"username": "<b>@lab.test"}, "AADSTS50034"),
    ):
        answer = enter(send, **{"code": code["user_code"], **fields})
        assert (answer.status_code, expected in answer.text, "<b>" in answer.text) == (400, True, False)
        assert PASSWORD not in answer.text
    ask("PATCH", f"/users/{NAME}", {"accountEnabled": False})
    assert "AADSTS50057" in enter(send, code["user_code"]).text
    assert poll(device, code["device_code"])[1] == "authorization_pending"


def test_a_user_who_was_disabled_meanwhile_gets_no_token(
    send: Send, device: Callable[..., httpx2.Response], ask: Callable[..., httpx2.Response]
) -> None:
    """Between the page and the poll an administrator may have acted."""
    code = device("v2.0/devicecode", scope=SCOPE).json()
    enter(send, code["user_code"])
    ask("PATCH", f"/users/{NAME}", {"accountEnabled": False})
    assert poll(device, code["device_code"]) == (400, "invalid_grant", 50057)


def test_another_page_signs_nobody_in(send: Send, device: Callable[..., httpx2.Response]) -> None:
    """A form that another page sends is refused with 403, whatever it knows."""
    code = device("v2.0/devicecode", scope=SCOPE).json()
    url = f"{LOGIN}/common/oauth2/deviceauth"
    for origin in ("null", "https://lab.example", "http://login.microsoftonline.com:1"):
        answer = send("POST", url, data={"user_code": code["user_code"], **SIGN_IN}, headers={"Origin": origin})
        assert answer.status_code == 403
    assert poll(device, code["device_code"])[1] == "authorization_pending"


@pytest.fixture
def local(azure: Azure) -> Iterator[str]:
    """The loopback address at which the host's browser finds the pages."""
    with served_at(azure.local) as port:
        azure.serve_sign_in_at(f"http://127.0.0.1:{port}")
        yield f"http://127.0.0.1:{port}"


def test_the_page_is_on_loopback(device: Callable[..., httpx2.Response], local: str) -> None:
    """A browser of the host, which knows neither the lab's names nor its certificates, finds the page."""
    code = device("v2.0/devicecode", scope=SCOPE).json()
    assert code["verification_uri"] == f"{local}/common/oauth2/deviceauth"
    with httpx2.Client(trust_env=False) as browser:
        assert "Enter the code" in browser.get(code["verification_uri"]).text
        rebound = {"Host": "lab.example"}
        assert browser.get(code["verification_uri"], headers=rebound).status_code == 404
        assert browser.get(f"{local}/common/oauth2/v2.0/token").status_code == 404
        answer = browser.post(
            code["verification_uri"], data={"user_code": code["user_code"], **SIGN_IN}, headers={"Origin": local}
        )
        assert "You have signed in to Microsoft Azure CLI" in answer.text
    assert poll(device, code["device_code"]) == (200, "", 0)


def fields_of(page: str) -> dict[str, str]:
    """Return the hidden fields of a page's form, and where it leads as `action`."""
    hidden = dict(re.findall(r'<input type="hidden" name="([^"]*)" value="([^"]*)">', page))
    return {**hidden, "action": re.findall(r'action="([^"]*)"', page)[0]}


def test_msal_signs_a_user_in_with_a_browser(
    application: msal.PublicClientApplication, local: str, ada: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MSAL opens a browser and listens; the browser carries the code to it, and MSAL has the user's tokens."""
    threads = []

    def browse(url: str) -> None:
        page = url.replace(LOGIN, local)
        with httpx2.Client(trust_env=False) as browser:
            assert "Microsoft Azure CLI wants you to sign in." in browser.get(page).text
            assert "AADSTS50126" in browser.post(page, data={**SIGN_IN, "password": "wrong"}).text
            fields = fields_of(browser.post(page, data=SIGN_IN).text)
            browser.post(fields.pop("action"), data=fields)

    def open_browser(url: str) -> None:
        threads.append(threading.Thread(target=browse, args=(url,)))
        threads[-1].start()

    monkeypatch.setenv("NO_PROXY", "*")
    tokens = application.acquire_token_interactive([SCOPE], auth_uri_callback=open_browser, timeout=60)
    for thread in threads:
        thread.join()
    assert tokens["id_token_claims"]["oid"] == ada
    claims = jwt.decode(tokens["access_token"], options={"verify_signature": False})
    assert (claims["upn"], claims["aud"]) == (NAME, SCOPE.removesuffix("/.default"))


class Client:
    """A client that sends a browser to the tenant and redeems the code that it brings."""

    def __init__(self, send: Send) -> None:
        self.send = send
        self.verifier = "a-verifier-of-a-fair-length-that-nobody-else-knows"
        digest = hashlib.sha256(self.verifier.encode()).digest()
        self.query = {
            "client_id": AZ,
            "response_type": "code",
            "redirect_uri": REDIRECT,
            "scope": SCOPE,
            "state": "s&1",
            "code_challenge": base64.urlsafe_b64encode(digest).decode().rstrip("="),
            "code_challenge_method": "S256",
        }

    def authorize(self, form: dict[str, str] | None = None, **query: str) -> httpx2.Response:
        """Open the page, or send its form."""
        url = f"{LOGIN}/organizations/oauth2/v2.0/authorize?{urlencode({**self.query, **query})}"
        return self.send("POST", url, data=form) if form else self.send("GET", url)

    def code(self, **query: str) -> dict[str, str]:
        """Sign in; return what comes back."""
        return back(self.authorize(SIGN_IN, **query))

    def redeem(self, code: str, **fields: str) -> tuple[int, int]:
        """Return the status and the AADSTS number of a code's redemption."""
        usual = {"client_id": AZ, "grant_type": "authorization_code", "redirect_uri": REDIRECT}
        form = {**usual, "code": code, "code_verifier": self.verifier, **fields}
        answer = self.send("POST", f"{LOGIN}/organizations/oauth2/v2.0/token", data=form)
        return answer.status_code, answer.json().get("error_codes", [0])[0]


def back(answer: httpx2.Response) -> dict[str, str]:
    """Return the query with which a browser is sent back to the client."""
    assert answer.status_code == 302
    assert answer.headers["location"].startswith(f"{REDIRECT}?")
    return {name: values[0] for name, values in parse_qs(urlsplit(answer.headers["location"]).query).items()}


def test_a_code_counts_once_for_its_client_with_its_proof(send: Send, clock: Clock) -> None:
    """Another client, another address, another verifier, a second time, too late: each is refused with its number."""
    client = Client(send)
    answer = client.code()
    assert answer["state"] == "s&1"
    assert client.redeem(answer["code"]) == (200, 0)
    assert client.redeem(answer["code"]) == (400, 54005)
    assert client.redeem(client.code()["code"], code_verifier="another") == (400, 501481)
    assert client.redeem(client.code()["code"], redirect_uri=f"{REDIRECT}/x") == (400, 50011)
    assert client.redeem(client.code()["code"], client_id="1950a258-227b-4e31-a9cf-717495945fc2") == (400, 700005)
    late = client.code()["code"]
    clock.ahead = 601
    assert client.redeem(late) == (400, 70008)


@pytest.mark.parametrize(
    "uri",
    [
        "https://lab.example/",
        "http://lab.example/",
        "http://localhost@lab.example/",
        "javascript:alert(1)",
        "",
        "http://localhost.lab.example/",
    ],
)
def test_nobody_is_sent_elsewhere(send: Send, uri: str) -> None:
    """A redirect URI that is not on loopback is refused before anybody types a password."""
    answer = Client(send).authorize(redirect_uri=uri)
    assert (answer.status_code, answer.json()["error_codes"]) == (400, [50011])


def test_what_the_client_is_told_instead_of_a_code(send: Send) -> None:
    """Declined, silent, another response type: the browser carries the error, as a query or as a form."""
    client = Client(send)
    assert back(client.authorize({"answer": "decline"}))["error"] == "access_denied"
    assert back(client.authorize(prompt="none"))["error"] == "login_required"
    assert back(client.authorize(response_type="token"))["error"] == "unsupported_response_type"
    page = client.authorize({"answer": "decline"}, response_mode="form_post")
    fields = fields_of(page.text)
    assert (fields["action"], fields["error"], fields["state"]) == (REDIRECT, "access_denied", "s&amp;1")
    script = re.findall("<script>(.*)</script>", page.text)[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page.headers["content-security-policy"]
    with contextlib.suppress(KeyError):
        assert client.authorize(client_id=str(uuid.uuid4())).json()["error_codes"] == [700016]
