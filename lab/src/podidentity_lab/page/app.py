"""The page's answers: the page itself, its events, its switches, the log as a file."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import httpx2
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from podidentity_lab.page import faults
from podidentity_lab.page.door import Address, Door, IsWelcome
from podidentity_lab.page.feed import Feed

SetFaults = Callable[[Mapping[str, Any] | None], Awaitable[Mapping[str, Any]]]
"""Sets fields of the faults, None: clears all; returns all. Raises `httpx2.HTTPError` when the lab does not."""
_FULL = "as many browsers as the page serves read it already; close one of them\n"
_NO_ANSWER = "the lab did not change its faults: it does not answer; see `podidentity lab status`\n"


def application(lab: str, feed: Feed, set_faults: SetFaults, address: Address, is_welcome: IsWelcome) -> ASGIApp:
    """Answer `GET /`, `events`, `log.jsonl`, `static/...`, `POST faults/NAME` below the page's folder; to its user."""

    async def show_page(_: Request) -> Response:
        return HTMLResponse(feed.render(lab))

    async def send_events(_: Request) -> Response:
        if feed.is_full:
            return PlainTextResponse(_FULL, 503)
        return StreamingResponse(feed.read(), media_type="text/event-stream")

    async def send_log(_: Request) -> Response:
        headers = {"Content-Disposition": f'attachment; filename="{lab}.jsonl"'}
        return StreamingResponse(_lines(feed), media_type="application/jsonl", headers=headers)

    async def set_and_show(fields: Mapping[str, Any] | None) -> Response:
        try:
            feed.show_faults(await set_faults(fields))
        except (httpx2.HTTPError, OSError):
            return PlainTextResponse(_NO_ANSWER, 502)
        return RedirectResponse(f"{address.path}#faults", 303)

    async def turn_switch(request: Request) -> Response:
        switch = faults.BY_NAME.get(request.path_params["name"])
        if switch is None:
            return PlainTextResponse("there is no such switch; load the page again\n", 404)
        return await set_and_show(switch.change(feed.faults))

    async def clear_faults(_: Request) -> Response:
        return await set_and_show(None)

    routes = [
        Route("/", show_page),
        Route("/events", send_events),
        Route("/log.jsonl", send_log),
        Route("/faults/clear", clear_faults, methods=["POST"]),
        Route("/faults/{name}", turn_switch, methods=["POST"]),
        Mount("/static", StaticFiles(packages=[("podidentity_lab.page", "static")])),
    ]
    return Door(Starlette(routes=[Mount(f"/{address.folder}", routes=routes)]), address, is_welcome)


async def _lines(feed: Feed) -> AsyncIterator[str]:
    for event in sorted(feed.last_events, key=lambda event: event.time):
        yield json.dumps(event.as_json(), ensure_ascii=False) + "\n"
