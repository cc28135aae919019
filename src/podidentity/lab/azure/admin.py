"""The lab's own door into its Azure: faults to set, the log to read, the state to take along.

Served on the lab's control socket, which only the lab's user can open; nothing inside the lab reaches it. Methods:
`GET` and `PATCH /faults` (fields of `Faults`), `GET /log` (oldest first; with `after` only what has a higher number,
with `wait` up to so many seconds for that), `GET /state` (with every secret).
"""

from dataclasses import asdict

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from podidentity.lab.azure import saving
from podidentity.lab.azure.faults import Faults
from podidentity.lab.azure.log import Log
from podidentity.lab.azure.state import State


def application(state: State, faults: Faults, log: Log) -> ASGIApp:
    """Serve the three."""

    async def show_faults(_: Request) -> Response:
        return JSONResponse(asdict(faults))

    async def set_faults(request: Request) -> Response:
        try:
            change(faults, await request.json())
        except ValueError as error:
            return JSONResponse({"error": str(error)}, 400)
        return JSONResponse(asdict(faults))

    async def show_log(request: Request) -> Response:
        number, seconds = (float(request.query_params.get(name, 0)) for name in ("after", "wait"))
        return JSONResponse([asdict(one) for one in await log.wait_after(int(number), seconds)])

    async def show_state(_: Request) -> Response:
        return Response(saving.render(state), media_type="application/json")

    return Starlette(
        routes=[
            Route("/faults", show_faults),
            Route("/faults", set_faults, methods=["PATCH"]),
            Route("/log", show_log),
            Route("/state", show_state),
        ]
    )


def change(faults: Faults, given: object) -> None:
    """Set the given fields, or none. Raises `ValueError` with the field and what it takes."""
    if not isinstance(given, dict) or given.keys() - asdict(faults).keys():
        raise ValueError(f"give an object with some of {', '.join(asdict(faults))}")
    try:
        wanted = msgspec.convert({**asdict(faults), **given}, Faults)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from None
    for name in given:
        setattr(faults, name, getattr(wanted, name))
