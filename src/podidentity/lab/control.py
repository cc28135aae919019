"""How commands talk to a living lab: a socket in its directory that tells the status and takes the order to stop.

`application` is the lab's side, `ask` the commands' side.
"""

import asyncio
import http.client
import json
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp

from podidentity.errors import LabError
from podidentity.lab.directory import Directory

ANSWER_SECONDS = 10.0

Json = dict[str, Any]


Join = Callable[[str, Sequence[str]], None]
"""Lets a node that waits join the cluster, with taints. Raises `LabError`."""


def application(status: Callable[[], Awaitable[Json]], stop: asyncio.Event, join: Join, azure: ASGIApp) -> ASGIApp:
    """Answer `GET /status`, `POST /stop` and `POST /join?node=NAME&taint=KEY=VALUE:EFFECT`.

    Below /azure are faults, log and state of the lab's Azure.
    """

    async def tell_status(_: Request) -> Response:
        return JSONResponse(await status())

    async def take_stop(_: Request) -> Response:
        stop.set()
        return JSONResponse({})

    async def take_join(request: Request) -> Response:
        try:
            join(request.query_params["node"], request.query_params.getlist("taint"))
        except LabError as error:
            return JSONResponse({"error": str(error)})
        return JSONResponse({})

    routes = [Route("/status", tell_status), Mount("/azure", azure)]
    routes += [Route("/stop", take_stop, methods=["POST"]), Route("/join", take_join, methods=["POST"])]
    return Starlette(routes=routes)


def listener(path: Path) -> socket.socket:
    """Open the lab's end."""
    opened = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    _reach(opened.bind, path)
    path.chmod(0o600)
    opened.listen()
    opened.setblocking(False)
    return opened


def ask(lab: Directory, method: str, path: str) -> Any:
    """Ask a living lab; the JSON that it answers. Raises `LabError` when it does not answer."""
    connection = http.client.HTTPConnection("lab", timeout=ANSWER_SECONDS)
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    stream.settimeout(ANSWER_SECONDS)
    try:
        _reach(stream.connect, lab.control)
        connection.sock = stream
        connection.request(method, path)
        answer = json.loads(connection.getresponse().read())
    except (OSError, http.client.HTTPException, ValueError) as error:
        told = f"The lab {lab.name!r} does not answer ({error}). Is it still starting, or going down?"
        raise LabError(told) from None
    finally:
        connection.close()
        stream.close()
    return answer


def _reach(use: Callable[[str], None], path: Path) -> None:
    """A socket's path may have 107 bytes; a lab's directory may be deeper, so it is reached through a descriptor."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        use(f"/proc/self/fd/{folder}/{path.name}")
    finally:
        os.close(folder)
