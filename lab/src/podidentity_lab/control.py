"""How commands talk to a running lab: HTTP on a socket in its directory, for its status, its Azure and its end.

`application` is the lab's side, `ask` the commands' side.
"""

import asyncio
import http.client
import json
import os
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp

from podidentity.errors import LabError
from podidentity_lab.directory import Directory

ANSWER_SECONDS = 10.0

Json = dict[str, Any]


class Cluster(Protocol):
    """What of the lab's Kubernetes can be changed from outside."""

    def join(self, node: str, taints: Sequence[str]) -> None:
        """Let a waiting node join, with these taints. Raises `LabError`."""
        ...

    def save(self) -> Json | None:
        """Return its objects; None when they cannot be kept."""
        ...

    async def load_images(self, digests: Mapping[str, str]) -> None:
        """Give every node images: digests of manifests in the lab's store, by full name. Raises `LabError`."""
        ...

    async def rotate_issuer_key(self, phase: str) -> list[str]:
        """Take a step, `publish`, `sign` or `withdraw`; return the published key IDs. Raises `LabError`."""
        ...


def application(
    status: Callable[[], Awaitable[Json]], stop: asyncio.Event, cluster: Cluster, azure: ASGIApp
) -> ASGIApp:
    """Answer `GET /status`, `POST /stop`, `POST /join?node=NAME&taint=KEY=VALUE:EFFECT` and `POST /issuer?phase=PHASE`.

    `GET /kubernetes/state` has the cluster's objects, or null where they are not kept. `POST /images` takes an object
    of digests by the names of images.

    Below /azure are faults, log and state of the lab's Azure.
    """

    async def tell_status(_: Request) -> Response:
        return JSONResponse(await status())

    async def take_stop(_: Request) -> Response:
        stop.set()
        return JSONResponse({})

    async def take_join(request: Request) -> Response:
        try:
            cluster.join(request.query_params["node"], request.query_params.getlist("taint"))
        except LabError as error:
            return JSONResponse({"error": str(error)})
        return JSONResponse({})

    async def take_issuer(request: Request) -> Response:
        try:
            return JSONResponse({"keys": await cluster.rotate_issuer_key(request.query_params.get("phase", ""))})
        except LabError as error:
            return JSONResponse({"error": str(error)}, 400)

    async def show_kubernetes(_: Request) -> Response:
        return JSONResponse(cluster.save())

    async def take_images(request: Request) -> Response:
        try:
            await cluster.load_images(await request.json())
        except LabError as error:
            return JSONResponse({"error": str(error)}, 400)
        return JSONResponse({})

    routes = [Route("/status", tell_status), Route("/kubernetes/state", show_kubernetes), Mount("/azure", azure)]
    routes += [Route("/stop", take_stop, methods=["POST"]), Route("/join", take_join, methods=["POST"])]
    routes += [Route("/issuer", take_issuer, methods=["POST"]), Route("/images", take_images, methods=["POST"])]
    return Starlette(routes=routes)


def listener(path: Path) -> socket.socket:
    """Return the lab's listening socket at `path`, which its owner alone can use."""
    listening_socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    _reach(listening_socket.bind, path)
    path.chmod(0o600)
    listening_socket.listen()
    listening_socket.setblocking(False)
    return listening_socket


def ask(lab: Directory, method: str, path: str, seconds: float = ANSWER_SECONDS, *, content: Json | None = None) -> Any:
    """Send a request to a running lab, `content` as JSON; return the JSON of its answer. Raises `LabError` without."""
    connection = http.client.HTTPConnection("lab", timeout=ANSWER_SECONDS)
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    stream.settimeout(seconds)
    try:
        _reach(stream.connect, lab.control)
        connection.sock = stream
        connection.request(method, path, None if content is None else json.dumps(content))
        answer = json.loads(connection.getresponse().read())
    except (OSError, http.client.HTTPException, ValueError) as error:
        message = f"lab {lab.name!r} does not answer ({error}); wait until it has started, or end it by `lab down`"
        raise LabError(message) from None
    finally:
        connection.close()
        stream.close()
    return answer


def _reach(use: Callable[[str], None], path: Path) -> None:
    """Call `use` with a short path of the socket at `path`: the kernel takes 107 bytes, and a directory may be deep."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        use(f"/proc/self/fd/{folder}/{path.name}")
    finally:
        os.close(folder)
