"""Reads: one object, lists page by page, and watches, as JSON or as the tables that `kubectl get` prints.

A list's pages are cut by name; each shows what is stored when it is asked for.
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

from podidentity_lab.kubernetes import selectors, tables
from podidentity_lab.kubernetes.kinds import Kind
from podidentity_lab.kubernetes.places import Place
from podidentity_lab.kubernetes.statuses import ApiError
from podidentity_lab.kubernetes.storage import Storage, WatchEvent

BOOKMARK_SECONDS = 15.0
INITIAL_EVENTS_END = "k8s.io/initial-events-end"
Json = dict[str, Any]
Form = Callable[[Json], Json]


class Reading:
    """Answers get, list and watch."""

    def __init__(self, storage: Storage, clock: Callable[[], float]) -> None:
        self._storage = storage
        self._clock = clock

    async def get(self, request: Request, place: Place) -> Response:
        """Answer with one object."""
        obj = self._storage.get(place.kind.resource, place.namespace, place.name)
        return JSONResponse(self._form(request, place.kind)(obj))

    async def list(self, request: Request, place: Place) -> Response:
        """Answer with all selected objects, or with as many as `limit` says and a token for the rest."""
        matches = chosen_by(request)
        items = [obj for obj in self._storage.list(place.kind.resource, place.namespace) if matches(obj)]
        page, metadata = _page(self._storage, request, items)
        if tables.is_table_preferred(request.headers.get("accept", "")):
            return JSONResponse(tables.render(place.kind, page, metadata, self._clock()))
        head = {"kind": f"{place.kind.kind}List", "apiVersion": place.kind.api_version, "metadata": metadata}
        return JSONResponse({**head, "items": page})

    async def watch(self, request: Request, place: Place) -> Response:
        """Answer with changes as they come; with `sendInitialEvents`, what exists comes first, and a bookmark after it.

        Today's client-go lists in that way and waits for the bookmark
        (kubernetes.io/docs/reference/using-api/api-concepts, streaming lists).
        """
        query, form, matches = request.query_params, self._form(request, place.kind), chosen_by(request)
        version = query.get("resourceVersion") or "0"
        since = _version(version) if version != "0" else None
        seconds = float(query.get("timeoutSeconds") or 600)
        bookmark, first = self._bookmark(place.kind), []
        if query.get("sendInitialEvents") == "true":
            objects = filter(matches, self._storage.list(place.kind.resource, place.namespace))
            first = [*(_line("ADDED", form(obj)) for obj in objects), bookmark({INITIAL_EVENTS_END: "true"})]
            since = self._storage.revision
        changes = _selected(self._storage.watch(place.kind.resource, place.namespace, since), matches)
        has_bookmarks = query.get("allowWatchBookmarks") == "true"
        lines = _lines(first, changes, seconds, form, (lambda: bookmark({})) if has_bookmarks else None)
        return StreamingResponse(lines, media_type="application/json")

    def _form(self, request: Request, kind: Kind) -> Form:
        if tables.is_table_preferred(request.headers.get("accept", "")):
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
    """Return the test that a request's label and field selectors make."""
    by_label = selectors.labels(request.query_params.get("labelSelector", ""))
    by_field = selectors.fields(request.query_params.get("fieldSelector", ""))
    return lambda obj: by_label(obj) and by_field(obj)


def _page(storage: Storage, request: Request, items: list[Json]) -> tuple[list[Json], Json]:
    """Return the items behind those that a token names, as many as `limit` allows, and the list's metadata."""
    query = request.query_params
    version, last = str(storage.revision), ("", "")
    if query.get("continue"):
        version, *position = _token_read(query["continue"])
        last = (position[0], position[1])
        if storage.forgotten(_version(version)):
            raise ApiError(410, "The provided continue parameter is too old to display a consistent list result.")
    remaining = [obj for obj in items if _position(obj) > last]
    limit = int(query.get("limit") or 0) or len(remaining)
    metadata: Json = {"resourceVersion": version}
    if len(remaining) > limit:
        metadata["continue"] = _token(version, *_position(remaining[limit - 1]))
        metadata["remainingItemCount"] = len(remaining) - limit
    return remaining[:limit], metadata


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


async def _selected(changes: AsyncIterator[WatchEvent], matches: selectors.Test) -> AsyncIterator[WatchEvent]:
    """Yield only what the selectors choose; what no longer fits is reported as deleted."""
    uids: set[str] = set()
    async for kind, obj in changes:
        uid = obj["metadata"]["uid"]
        if matches(obj):
            yield WatchEvent(kind, obj)
            uids.add(uid)
        elif uid in uids or kind == "MODIFIED":
            uids.discard(uid)
            yield WatchEvent("DELETED", obj)


async def _lines(
    first: Iterable[bytes],
    changes: AsyncIterator[WatchEvent],
    seconds: float,
    form: Form,
    bookmark: Callable[[], bytes] | None,
) -> AsyncIterator[bytes]:
    """Yield a watch's body until its time is over: `first`, a JSON line for each change, bookmarks when it is quiet."""
    for line in first:
        yield line
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    upcoming = asyncio.ensure_future(anext(changes, None))
    try:
        while (remaining := deadline - loop.time()) > 0:
            await asyncio.wait({upcoming}, timeout=min(remaining, BOOKMARK_SECONDS))
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
