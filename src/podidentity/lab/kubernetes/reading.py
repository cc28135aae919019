"""Reads: one object, lists page by page, and watches, as JSON or as the tables that `kubectl get` prints.

A list's pages are cut by name; each shows what is stored when it is asked for. Called by `api`.
"""

import asyncio
import base64
import binascii
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from podidentity.lab.kubernetes import selectors, tables
from podidentity.lab.kubernetes.kinds import Kind
from podidentity.lab.kubernetes.places import Place
from podidentity.lab.kubernetes.statuses import ApiError
from podidentity.lab.kubernetes.storage import Storage, WatchEvent

BOOKMARK_SECONDS = 15.0
INITIAL_EVENTS_END = "k8s.io/initial-events-end"
Json = dict[str, Any]
Form = Callable[[Json], Json]


class Reading:
    """Answers get, list and watch; constructed by `api`."""

    def __init__(self, storage: Storage, clock: Callable[[], float]) -> None:
        self._storage = storage
        self._clock = clock

    async def get(self, request: Request, place: Place) -> Response:
        """One object."""
        obj = self._storage.get(place.kind.resource, place.namespace, place.name)
        return JSONResponse(self._form(request, place.kind)(obj))

    async def list(self, request: Request, place: Place) -> Response:
        """All chosen objects, or as many as `limit` says and a token for the rest."""
        chosen = chosen_by(request)
        items = [obj for obj in self._storage.list(place.kind.resource, place.namespace) if chosen(obj)]
        page, metadata = _page(self._storage, request, items)
        if tables.wanted(request.headers.get("accept", "")):
            return JSONResponse(tables.render(place.kind, page, metadata, self._clock()))
        head = {"kind": f"{place.kind.kind}List", "apiVersion": place.kind.api_version, "metadata": metadata}
        return JSONResponse({**head, "items": page})

    async def watch(self, request: Request, place: Place) -> Response:
        """Changes as they come; with `sendInitialEvents`, what exists and a mark behind it come first.

        Today's client-go lists in that way and waits for the mark (kubernetes.io/docs/reference/using-api/api-concepts,
        streaming lists).
        """
        query, form, chosen = request.query_params, self._form(request, place.kind), chosen_by(request)
        version = query.get("resourceVersion") or "0"
        since = _version(version) if version != "0" else None
        seconds = float(query.get("timeoutSeconds") or 600)
        bookmark, first = self._bookmark(place.kind), []
        if query.get("sendInitialEvents") == "true":
            existing = filter(chosen, self._storage.list(place.kind.resource, place.namespace))
            first = [*(_line("ADDED", form(obj)) for obj in existing), bookmark({INITIAL_EVENTS_END: "true"})]
            since = self._storage.revision
        changes = _selected(self._storage.watch(place.kind.resource, place.namespace, since), chosen)
        wanted = query.get("allowWatchBookmarks") == "true"
        written = _lines(first, changes, seconds, form, (lambda: bookmark({})) if wanted else None)
        return StreamingResponse(written, media_type="application/json")

    def _form(self, request: Request, kind: Kind) -> Form:
        if tables.wanted(request.headers.get("accept", "")):
            return lambda obj: tables.render(
                kind, [obj], {"resourceVersion": obj["metadata"]["resourceVersion"]}, self._clock()
            )
        return lambda obj: obj

    def _bookmark(self, kind: Kind) -> Callable[[dict[str, str]], bytes]:
        def bookmark(annotations: dict[str, str]) -> bytes:
            metadata: Json = {"resourceVersion": str(self._storage.revision), "creationTimestamp": None}
            metadata |= {"annotations": annotations} if annotations else {}
            return _line("BOOKMARK", {"kind": kind.kind, "apiVersion": kind.api_version, "metadata": metadata})

        return bookmark


def chosen_by(request: Request) -> selectors.Test:
    """The test that a request's label and field selectors make."""
    by_label = selectors.labels(request.query_params.get("labelSelector", ""))
    by_field = selectors.fields(request.query_params.get("fieldSelector", ""))
    return lambda obj: by_label(obj) and by_field(obj)


def _page(storage: Storage, request: Request, items: list[Json]) -> tuple[list[Json], Json]:
    """The items after those that a token names, as many as `limit` allows, and the list's metadata."""
    query = request.query_params
    version, after = str(storage.revision), ("", "")
    if query.get("continue"):
        version, *where = _token_read(query["continue"])
        after = (where[0], where[1])
        if storage.forgotten(_version(version)):
            raise ApiError(410, "The provided continue parameter is too old to display a consistent list result.")
    left = [obj for obj in items if _position(obj) > after]
    limit = int(query.get("limit") or 0) or len(left)
    metadata: Json = {"resourceVersion": version}
    if len(left) > limit:
        metadata["continue"] = _token(version, *_position(left[limit - 1]))
        metadata["remainingItemCount"] = len(left) - limit
    return left[:limit], metadata


def _position(obj: Json) -> tuple[str, str]:
    return obj["metadata"].get("namespace") or "", obj["metadata"]["name"]


def _version(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ApiError(400, f'Invalid value: "{text}": invalid resource version') from None


def _token(*parts: str) -> str:
    return base64.urlsafe_b64encode(json.dumps(parts).encode()).decode()


def _token_read(text: str) -> list[str]:
    try:
        parts = [str(part) for part in json.loads(base64.urlsafe_b64decode(text))]
    except (ValueError, TypeError, binascii.Error):
        parts = []
    if len(parts) != 3:
        raise ApiError(400, "continue key is not valid")
    return parts


async def _selected(changes: AsyncIterator[WatchEvent], chosen: selectors.Test) -> AsyncIterator[WatchEvent]:
    """Only what the selectors choose; what no longer fits is told as deleted."""
    shown: set[str] = set()
    async for kind, obj in changes:
        uid = obj["metadata"]["uid"]
        if chosen(obj):
            yield WatchEvent(kind, obj)
            shown.add(uid)
        elif uid in shown or kind == "MODIFIED":
            shown.discard(uid)
            yield WatchEvent("DELETED", obj)


async def _lines(
    first: Iterable[bytes],
    changes: AsyncIterator[WatchEvent],
    seconds: float,
    form: Form,
    bookmark: Callable[[], bytes] | None,
) -> AsyncIterator[bytes]:
    """A watch's body: `first`, one JSON line for each change, a bookmark when it is quiet, until its time is over."""
    for line in first:
        yield line
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    upcoming = asyncio.ensure_future(anext(changes, None))
    try:
        while (left := deadline - loop.time()) > 0:
            await asyncio.wait({upcoming}, timeout=min(left, BOOKMARK_SECONDS))
            if upcoming.done():
                event = upcoming.result()
                if event is None:
                    return
                yield _line(event.type, form(event.object))
                upcoming = asyncio.ensure_future(anext(changes, None))
            elif bookmark is not None:
                yield bookmark()
    except ApiError as error:
        yield _line("ERROR", error.body())
    finally:
        upcoming.cancel()
        with contextlib.suppress(asyncio.CancelledError, ApiError):
            await upcoming


def _line(kind: str, obj: Json) -> bytes:
    return json.dumps({"type": kind, "object": obj}).encode() + b"\n"
