"""The lab's own interface to its Azure: sets faults, shows the log, hands out the state.

Served on the lab's control socket, which only the lab's user can open; nothing inside the lab reaches it. Methods:
`GET`, `PATCH` and `DELETE /faults` (fields of `Faults`), `GET /log` (oldest first; with `after=N` only entries with a
higher number, with `wait=S` after up to S seconds if there is none yet), `GET /state` (with every secret), `POST
/local?identity=NAME` (the secret with which a process of the host is that identity, and its IDs).
"""

import math
from dataclasses import asdict

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from podidentity_lab.azure import saving
from podidentity_lab.azure.faults import Faults
from podidentity_lab.azure.local_identity import LocalIdentities
from podidentity_lab.azure.log import Log
from podidentity_lab.azure.state import State


def application(state: State, faults: Faults, log: Log, local: LocalIdentities) -> ASGIApp:
    """Return an application that serves `/faults`, `/log`, `/state` and `/local`."""

    async def show_faults(_: Request) -> Response:
        return JSONResponse(asdict(faults))

    async def set_faults(request: Request) -> Response:
        try:
            change(faults, await request.json())
        except ValueError as error:
            return JSONResponse({"error": str(error)}, 400)
        return JSONResponse(asdict(faults))

    async def clear_faults(_: Request) -> Response:
        change(faults, asdict(Faults()))
        return JSONResponse(asdict(faults))

    async def show_log(request: Request) -> Response:
        try:
            number, seconds = int(request.query_params.get("after", 0)), float(request.query_params.get("wait", 0))
        except ValueError:
            return JSONResponse({"error": "after is the number of an entry, wait a number of seconds"}, 400)
        return JSONResponse([entry.as_json() for entry in await log.wait_after(number, seconds)])

    async def show_state(_: Request) -> Response:
        return Response(saving.render(state), media_type="application/json")

    async def admit_local(request: Request) -> Response:
        try:
            return JSONResponse(local.admit(request.query_params.get("identity", "")))
        except LookupError as error:
            return JSONResponse({"error": error.args[0]}, 404)

    return Starlette(
        routes=[
            Route("/faults", show_faults),
            Route("/faults", set_faults, methods=["PATCH"]),
            Route("/faults", clear_faults, methods=["DELETE"]),
            Route("/log", show_log),
            Route("/state", show_state),
            Route("/local", admit_local, methods=["POST"]),
        ]
    )


def change(faults: Faults, fields: object) -> None:
    """Set all the given fields or, when one is wrong, none. Raises `ValueError` with the field and what it takes."""
    if not isinstance(fields, dict) or fields.keys() - asdict(faults).keys():
        raise ValueError(f"give an object with some of {', '.join(asdict(faults))}")
    try:
        updated_faults = msgspec.convert({**asdict(faults), **fields}, Faults)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from None
    for name in fields:
        value = getattr(updated_faults, name)
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name} must be a number of seconds or a share, not {value}")
    for name in fields:
        setattr(faults, name, getattr(updated_faults, name))
