"""Attacks on the page's server: other users of the machine, other pages in the browser, other ports of this host."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx2
import pytest

from podidentity_lab.page import faults
from podidentity_lab.page.app import application
from podidentity_lab.page.connections import STRANGERS_LIMIT, bounded_protocol
from podidentity_lab.page.door import COOKIE, Address, End
from podidentity_lab.page.feed import READERS_LIMIT, Feed
from serving import serving
from waiting import eventually

Headers = Mapping[str, str]


@dataclass
class Page:
    """A page that is served, and what reached the lab through it. `strangers`: everybody is another user."""

    address: Address
    feed: Feed
    requests: list[Mapping[str, Any] | None] = field(default_factory=list)
    strangers: bool = False
    lab_answers: bool = True

    @property
    def cookie(self) -> dict[str, str]:
        """The header that a browser with the page open sends."""
        return {"Cookie": f"{COOKIE}={self.address.token}"}

    async def set_faults(self, fields: Mapping[str, Any] | None) -> Mapping[str, Any]:
        """Set faults, unless the lab is gone."""
        if not self.lab_answers:
            raise httpx2.ConnectError("gone")
        self.requests.append(fields)
        return {**faults.DEFAULTS, **(fields or {})}

    def is_welcome(self, _client: End, _server: End) -> bool:
        """Whether a connection is the user's."""
        return not self.strangers

    async def get(self, path: str = "", headers: Headers | None = None, method: str = "GET") -> httpx2.Response:
        """Send a request for something below the page's folder."""
        url = path if path.startswith("/") else f"{self.address.path}{path}"
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{self.address.port}", trust_env=False) as client:
            return await client.request(method, url, headers=headers)


@pytest.fixture
async def page() -> AsyncIterator[Page]:
    """A page of a lab in which nothing has happened."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    made = Page(Address(listener.getsockname()[1]), Feed())
    app = application("lab", made.feed, made.set_faults, made.address, made.is_welcome)
    protocol: Any = bounded_protocol(made.is_welcome)
    async with serving(app, listener=listener, http=protocol, ws="wsproto"):
        yield made


async def test_a_visit_hands_the_browser_a_cookie_for_the_page_alone(page: Page) -> None:
    """The cookie has a path that no other port of this host knows; the page itself has no secret in it."""
    answer = await page.get(f"?token={page.address.token}")
    assert answer.status_code == 200
    assert answer.headers.get_list("set-cookie") == [
        f"{COOKIE}={page.address.token}; Path=/{page.address.folder}/; HttpOnly; SameSite=Strict"
    ]
    assert page.address.token not in answer.text
    assert answer.headers["referrer-policy"] == "same-origin"
    again = await page.get(headers=page.cookie)
    assert (again.status_code, "set-cookie" in again.headers) == (200, False)


@pytest.mark.parametrize(
    "path", ["", "events", "log.jsonl", "static/page.js", "nothing", "/", "/events", "/static/page.js"]
)
@pytest.mark.parametrize("cookie", ["", f"{COOKIE}=", f"{COOKIE}=wrong"])
async def test_without_the_secret_everything_is_refused_alike(page: Page, path: str, cookie: str) -> None:
    """Nobody without the secret learns even what there is; a refusal hands out no cookie."""
    for query in ("", "?token=", "?token=wrong"):
        answer = await page.get(path + query, {"Cookie": cookie} if cookie else {})
        assert (answer.status_code, "set-cookie" in answer.headers) == (403, False)
        assert page.address.folder not in answer.text


async def test_the_secret_counts_at_the_page_alone(page: Page) -> None:
    """A URL with the secret opens the page and nothing else: what is below it wants the cookie."""
    for path in ("events", "log.jsonl", "/"):
        assert (await page.get(f"{path}?token={page.address.token}")).status_code == 403


@pytest.mark.parametrize(
    "host",
    [
        "lab.example:{port}",
        "127.0.0.1",
        "127.0.0.1:1",
        "127.0.0.1.lab.example:{port}",
        "[::1]:{port}",
        "x@127.0.0.1:{port}",
    ],
)
async def test_a_name_that_leads_here_is_refused(page: Page, host: str) -> None:
    """A page whose name resolves to 127.0.0.1 gets nothing, even with the secret."""
    headers = {"Host": host.format(port=page.address.port), **page.cookie}
    assert (await page.get(headers=headers)).status_code == 403
    assert (await page.get(f"?token={page.address.token}", headers)).status_code == 403


@pytest.mark.parametrize(
    "origin", [None, "null", "http://127.0.0.1:1", "https://127.0.0.1:{port}", "http://localhost:{port}"]
)
async def test_no_other_page_turns_a_switch(page: Page, origin: str | None) -> None:
    """A form or script of another page, or of another port of this host, changes nothing although the cookie comes."""
    own = {"Origin": f"http://127.0.0.1:{page.address.port}", **page.cookie}
    headers = {**page.cookie, **({"Origin": origin.format(port=page.address.port)} if origin else {})}
    for switch in ("faults/imds-fails", "faults/clear"):
        assert (await page.get(switch, headers, "POST")).status_code == 403
        assert (await page.get(switch, own, "GET")).status_code == 405
    assert page.requests == []
    assert (await page.get("faults/imds-fails", own, "POST")).status_code == 303
    assert page.requests == [{"imds_fails": 1.0}]


@pytest.mark.parametrize("site", ["same-site", "cross-site"])
async def test_what_other_pages_embed_is_refused(page: Page, site: str) -> None:
    """Another port of this host is the same site, so the cookie comes: it must not use up readers or read anything."""
    for path in ("", "events", "log.jsonl", "static/page.js"):
        assert (await page.get(path, {**page.cookie, "Sec-Fetch-Site": site})).status_code == 403
    link = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "navigate"}
    assert (await page.get(f"?token={page.address.token}", link)).status_code == 200


async def test_a_websocket_is_refused_in_silence(page: Page, caplog: pytest.LogCaptureFixture) -> None:
    """Any page may try to open one: it is refused, and the user's terminal shows nothing."""
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "x" * 22 + "==",
    }
    with caplog.at_level(logging.WARNING):
        assert (await page.get(headers={**upgrade, **page.cookie})).status_code == 403
    assert caplog.records == []


async def test_another_user_is_refused_even_with_the_secret(page: Page) -> None:
    """Command lines are everybody's to read, and the URL stands in that of a browser."""
    page.strangers = True
    answer = await page.get(f"?token={page.address.token}")
    assert (answer.status_code, "another user" in answer.text) == (403, True)
    assert "set-cookie" not in answer.headers


async def test_connections_of_other_users_are_bounded(page: Page) -> None:
    """However many connections another user holds open, the user's own are served, and few of the others stay."""
    page.strangers = True
    async with contextlib.AsyncExitStack() as stack:
        readers = []
        for _ in range(STRANGERS_LIMIT * 4):
            reader, writer = await asyncio.open_connection("127.0.0.1", page.address.port)
            stack.push_async_callback(writer.wait_closed)
            stack.callback(writer.close)
            readers.append(reader)
        await eventually(lambda: sum(reader.at_eof() for reader in readers) == STRANGERS_LIMIT * 3, "the cut")
        page.strangers = False
        assert (await page.get(headers=page.cookie)).status_code == 200


async def test_readers_are_bounded(page: Page) -> None:
    """However many browsers ask for events, a bounded number gets them; one that is gone makes room."""
    async with httpx2.AsyncClient(trust_env=False) as client, contextlib.AsyncExitStack() as stack:
        url = f"http://127.0.0.1:{page.address.port}{page.address.path}events"
        for _ in range(READERS_LIMIT):
            await stack.enter_async_context(client.stream("GET", url, headers=page.cookie))
        await eventually(lambda: page.feed.is_full, "all to read")
        assert (await page.get("events", page.cookie)).status_code == 503
        await stack.aclose()
        await eventually(lambda: not page.feed.is_full, "room")


async def test_a_switch_of_a_lab_that_is_gone_says_so(page: Page) -> None:
    """When the lab does not take a fault, the answer is a sentence and no traceback."""
    page.lab_answers = False
    own = {"Origin": f"http://127.0.0.1:{page.address.port}", **page.cookie}
    answer = await page.get("faults/imds-slow", own, "POST")
    assert (answer.status_code, answer.text.startswith("the lab did not change its faults")) == (502, True)
