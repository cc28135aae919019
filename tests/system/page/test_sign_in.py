"""The sign-in pages of the lab's Entra ID in a real browser: they work under their own policy, and can be read."""

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from podidentity_lab.azure import Azure, AzureSettings
from podidentity_lab.azure.state import User
from serving import served
from system.page.browser import Browser, browser
from system.page.test_open import CONTRASTS
from waiting import until

pytestmark = pytest.mark.timeout(300)
AZ = "04b07795-8ddb-461a-bbee-02f9e1bf7b46"
NAME, PASSWORD = "ada@lab.test", "not-a-real-one"
FILL = f"""
document.querySelector('[name=username]').value = {NAME!r};
document.querySelector('[name=password]').value = {PASSWORD!r};
"""


@pytest.fixture
def base() -> Iterator[str]:
    """Where a tenant with a user has its pages."""
    azure = Azure(AzureSettings())
    azure.state.users["ada"] = User("ada", NAME, "Ada", PASSWORD)
    with served(azure.local) as port:
        azure.serve_sign_in_at(f"http://127.0.0.1:{port}")
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def window(tmp_path: Path) -> Iterator[Browser]:
    """A browser, which must not have reported any problem at the end."""
    with browser(tmp_path) as opened:
        yield opened
        assert opened.problems() == []


def test_a_browser_carries_the_code_to_the_client(base: str, window: Browser) -> None:
    """The form is sent with the right Origin, and the page behind it posts the code to the client by itself."""
    received: list[str] = []

    async def receive(request: Request) -> Response:
        received.append((await request.body()).decode())
        return PlainTextResponse("thanks")

    with served(Starlette(routes=[Route("/", receive, methods=["GET", "POST"])])) as port:
        query = {
            "client_id": AZ,
            "response_type": "code",
            "response_mode": "form_post",
            "scope": "openid",
            "state": "'\"<s>",
        }
        query["redirect_uri"] = f"http://127.0.0.1:{port}/"
        window.open(f"{base}/organizations/oauth2/v2.0/authorize?{urlencode(query)}")
        window.value(f"{FILL} document.querySelector('button').click()")
        until(lambda: received, "the code")
    assert received[0].startswith("code=")
    assert received[0].endswith(urlencode({"state": query["state"]}))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_device_code_is_entered_on_a_telephone(base: str, window: Browser, scheme: str) -> None:
    """At 360 pixels nothing scrolls sideways, texts have contrast, and Enter in the last field sends the form."""
    form = {"client_id": AZ, "scope": "https://vault.azure.net/.default"}
    code = httpx2.post(f"{base}/common/oauth2/v2.0/devicecode", data=form, trust_env=False).json()
    window.resize(360, 740, scheme)
    window.open(code["verification_uri"])
    assert window.value("document.documentElement.scrollWidth") <= 360
    assert window.value(CONTRASTS) == []
    window.value(f"{FILL} document.querySelector('[name=user_code]').value = {code['user_code']!r}")
    window.value("document.querySelector('[name=password]').focus()")
    window.press("Enter")
    until(lambda: "You have signed in" in window.text(), "the sign-in")
