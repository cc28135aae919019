"""Sends requests to the Kubernetes API: list, get, create, replace, patch, delete and watch.

Each is one method; each failure raises the KubernetesError of its kind. The server sets the pace: after a 429, or a 5xx
with Retry-After, the request is sent again after the time that the server asks for. Nothing is remembered here: that is
the task of `reflector` and `store`.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import httpx2
import msgspec

from podidentity.core.model.identities import ObjectKey
from podidentity.core.model.token_bucket import full_bucket
from podidentity.errors import InvalidError, KubernetesError, MalformedObjectError
from podidentity.http import json_object, read_body
from podidentity.kube.answers import error_of, no_answer, read_status, retry_after_of
from podidentity.kube.connection import ANSWER_TIMEOUT_SECONDS
from podidentity.kube.depth import decode_beside
from podidentity.kube.quota import NamespaceQuota
from podidentity.kube.resources import UNREADABLE, Json, Kind, StoredObject, read_meta
from podidentity.timing import SYSTEM_CLOCK, Clock, LoopTurns

T = TypeVar("T")

PAGE_SIZE = 500
"""Objects in one answer at most, as client-go has it: some 5 MB of usual pods, decoded in under 10 ms."""

PAGE_BYTES = 4 * 1024 * 1024
"""The length that a page should have: of large objects it gets fewer, down to one."""

ANSWER_LIMIT_BYTES = 16 * 1024 * 1024
"""The longest answer that is read: each of 500 objects may have 1.5 MB. A longer page is requested in smaller parts."""

TURN_BYTES = 16 * 1024
"""How much of a list is decoded in one turn of the event loop: a millisecond, which NMI's pods wait for."""

TRIES = 10
"""How often a request is sent at most while the server asks to come back later; as in client-go."""

LINE_LIMIT_BYTES = 16 * 1024 * 1024
"""The longest line of a watch: etcd stores at most 1.5 MB an object by default; its JSON may be longer."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Selection:
    """Which objects of a kind: all by default. Selectors are the API's (`aadpodidbinding`, `spec.nodeName=n1`)."""

    namespace: str = ""
    labels: str = ""
    fields: str = ""

    def parameters(self) -> dict[str, str]:
        """Return the query parameters."""
        selectors = {"labelSelector": self.labels, "fieldSelector": self.fields}
        return {name: value for name, value in selectors.items() if value}


ALL_OBJECTS = Selection()
NONE_ODD: Mapping[ObjectKey, str] = {}
_SHORTER = 8  # the factor by which pages shrink when they are too long, and grow at most


@dataclass(frozen=True, slots=True)
class ObjectList(Generic[T]):
    """A list: the objects, the message for each that cannot be read (`odd`), and the version from which to watch."""

    items: Mapping[ObjectKey, StoredObject[T]]
    version: str
    odd: Mapping[ObjectKey, str] = field(default_factory=dict)

    @property
    def values(self) -> tuple[T, ...]:
        """The values without keys and versions."""
        return tuple(item.value for item in self.items.values())


@dataclass(frozen=True, slots=True)
class _Request:
    """One request; `operation` is its name in errors, such as "list pods"."""

    operation: str
    method: str
    path: str
    parameters: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    content_type: str = "application/json"


class _ListMeta(msgspec.Struct, rename="camel"):
    resource_version: str = ""
    continue_: str = msgspec.field(default="", name="continue")


class _List(msgspec.Struct):
    # Items stay bytes: one that cannot be decoded must not make the whole page fail.
    metadata: _ListMeta = msgspec.field(default_factory=_ListMeta)
    items: list[msgspec.Raw] | None = None


_LIST = msgspec.json.Decoder(_List)


class Pace:
    """At most `per_second` requests, with a burst of as many; 0 sets no limit and leaves the pace to the server."""

    def __init__(self, per_second: float = 0.0, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock = clock
        self._bucket = full_bucket(per_second, 1.0 / per_second, clock.steady()) if per_second > 0 else None

    async def wait(self) -> None:
        """Wait until the next request may start."""
        if self._bucket is None:
            return
        now = self._clock.steady()
        seconds = self._bucket.ready_at(now) - now
        self._bucket = self._bucket.take(now)  # before the wait: who comes next waits for the token after this one
        if seconds > 0:
            await self._clock.sleep(seconds)


class Api:
    """The Kubernetes API through one authenticated client (`connection.open_client`), which stays the caller's."""

    def __init__(self, http: httpx2.AsyncClient, clock: Clock = SYSTEM_CLOCK, pace: Pace | None = None) -> None:
        self.clock = clock
        self._http = http
        self._pace = pace or Pace()
        self._page_sizes: dict[str, int] = {}

    async def list(
        self,
        kind: Kind[T],
        selection: Selection = ALL_OBJECTS,
        *,
        known_odd: Mapping[ObjectKey, str] = NONE_ODD,
        quota: NamespaceQuota | None = None,
    ) -> ObjectList[T]:
        """List all selected objects, page by page.

        Objects that cannot be read are only in `odd`; each is logged unless `known_odd` has it with the same message.
        With a `quota`, what it does not take is in neither.
        """
        quota = quota or NamespaceQuota(0, str(kind))
        items: dict[ObjectKey, StoredObject[T]] = {}
        odd: dict[ObjectKey, str] = {}
        parameters = selection.parameters()
        while True:
            page = await self._page(kind, selection, parameters)
            await _read_items(kind, page, items, odd, quota)
            if not page.metadata.continue_:
                break
            parameters["continue"] = page.metadata.continue_
        for key, message in odd.items():
            if known_odd.get(key) != message:
                _log.warning("list %s: ignored: %s", kind, message)
        return ObjectList(items, page.metadata.resource_version, odd)

    async def _page(self, kind: Kind[Any], selection: Selection, parameters: Mapping[str, str]) -> "_List":
        """Get one page, with as many objects as fitted last time; with fewer when the answer is too long."""
        size = self._page_sizes.get(kind.plural, PAGE_SIZE)
        while True:
            sized = {**parameters, "limit": str(size)}
            body = await self._send_bounded(_Request(f"list {kind}", "GET", kind.path(selection.namespace), sized))
            if body is not None:
                break
            if size == 1:
                raise InvalidError(
                    f"list {kind}: an object is longer than {ANSWER_LIMIT_BYTES} bytes; look at the objects' sizes",
                    status=200,
                )
            size = self._page_sizes[kind.plural] = max(1, size // _SHORTER)
        page = await _read_page(kind, body)
        self._page_sizes[kind.plural] = _page_size(size, len(page.items or ()), len(body))
        return page

    async def server_version(self) -> str:
        """Return the version of Kubernetes, such as `v1.31.0`. Raises KubernetesError."""
        try:
            return str((await self.document("/version", "get the version"))["gitVersion"])
        except KeyError:
            raise InvalidError(
                "get the version: the answer has no version; check that the address is that of an API server"
            ) from None

    async def document(self, path: str, operation: str) -> dict[str, Any]:
        """Return the JSON object at a path that is no Kubernetes object's; empty for anything else in its place."""
        return dict(json_object((await self._send(_Request(operation, "GET", path))).content))

    async def get(self, kind: Kind[T], key: ObjectKey) -> T:
        """Return one object; NotFoundError when there is none."""
        response = await self._send(_Request(f"get {kind} {_render_key(key)}", "GET", kind.path(*key)))
        return kind.read(response.content).value

    async def create(self, kind: Kind[T], body: Json) -> T:
        """Create an object from its whole JSON form and return it; ConflictError when it exists."""
        key = _key(body)
        request = _Request(
            f"create {kind} {_render_key(key)}", "POST", kind.path(key.namespace), body=_encode(kind, body)
        )
        return kind.read((await self._send(request)).content).value

    async def replace(self, kind: Kind[T], body: Json) -> T:
        """Replace an object and return it; ConflictError when its `metadata.resourceVersion` is not the stored one."""
        key = _key(body)
        request = _Request(f"update {kind} {_render_key(key)}", "PUT", kind.path(*key), body=_encode(kind, body))
        return kind.read((await self._send(request)).content).value

    async def patch(self, kind: Kind[T], key: ObjectKey, change: Json | Sequence[Json]) -> T:
        """Change parts of an object and return it.

        A mapping is a merge patch (RFC 7396), a sequence a JSON patch (RFC 6902).
        """
        form = "merge-patch" if isinstance(change, Mapping) else "json-patch"
        request = _Request(
            f"patch {kind} {_render_key(key)}",
            "PATCH",
            kind.path(*key),
            body=msgspec.json.encode(change),
            content_type=f"application/{form}+json",
        )
        return kind.read((await self._send(request)).content).value

    async def delete(self, kind: Kind[Any], key: ObjectKey, *, uid: str = "", version: str = "") -> None:
        """Delete an object; ConflictError when it has not the given `uid` or `version`."""
        identifiers = {"uid": uid, "resourceVersion": version}
        preconditions = {name: value for name, value in identifiers.items() if value}
        options = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": preconditions}
        body = msgspec.json.encode(options) if preconditions else None
        await self._send(_Request(f"delete {kind} {_render_key(key)}", "DELETE", kind.path(*key), body=body))

    @asynccontextmanager
    async def watch(
        self, kind: Kind[Any], selection: Selection, version: str, *, silence_seconds: float, duration_seconds: int
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Watch from `version` on: entered once the server has accepted the watch; yields one line for each event.

        The server ends it after `duration_seconds`; a silence longer than `silence_seconds` is httpx2.ReadTimeout.
        """
        request = _Request(
            f"watch {kind}",
            "GET",
            kind.path(selection.namespace),
            selection.parameters()
            | {
                "watch": "true",
                "allowWatchBookmarks": "true",
                "resourceVersion": version,
                "timeoutSeconds": str(duration_seconds),
            },
        )
        await self._pace.wait()
        http_request = self._build(request)
        http_request.extensions["timeout"] = {**http_request.extensions["timeout"], "read": silence_seconds}
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_SECONDS):
                response = await self._answer(request, http_request, stream=True)
        except TimeoutError as error:
            raise no_answer(request.operation, http_request.url.netloc.decode(), error) from error
        try:
            if not response.is_success:
                await _read_refusal(request, response)
                raise _refusal(request.operation, response)
            async with aclosing(split_lines(response.aiter_bytes())) as lines:
                yield lines
        finally:
            await response.aclose()

    async def _send_bounded(self, request: _Request) -> bytes | None:
        """Send, and return the answer's body; None when it is longer than `ANSWER_LIMIT_BYTES`."""
        response = await self._send(request, stream=True)
        try:
            return await read_body(response, ANSWER_LIMIT_BYTES)
        except httpx2.HTTPError as error:
            raise no_answer(request.operation, response.request.url.netloc.decode(), error) from error
        finally:
            await response.aclose()

    async def _send(self, request: _Request, *, stream: bool = False) -> httpx2.Response:
        """Send, again whenever the server asks to come back later; raise KubernetesError for any answer but 2xx.

        With `stream` the body of the answer is not read yet, and the caller closes the answer.
        """
        for remaining in reversed(range(TRIES)):
            await self._pace.wait()
            response = await self._answer(request, self._build(request), stream=stream)
            if response.is_success:
                return response
            await _read_refusal(request, response)
            wait = retry_after_of(response)
            if not remaining or wait is None or not _is_later(response.status_code):
                break
            await self.clock.sleep(wait)
        raise _refusal(request.operation, response)

    def _build(self, request: _Request) -> httpx2.Request:
        headers = {"Content-Type": request.content_type} if request.body is not None else {}
        return self._http.build_request(
            request.method, request.path, params=request.parameters, content=request.body, headers=headers
        )

    async def _answer(
        self, request: _Request, http_request: httpx2.Request, *, stream: bool = False
    ) -> httpx2.Response:
        try:
            return await self._http.send(http_request, stream=stream)
        except httpx2.HTTPError as error:
            raise no_answer(request.operation, http_request.url.netloc.decode(), error) from error


async def split_lines(chunks: AsyncIterator[bytes], limit_bytes: int = LINE_LIMIT_BYTES) -> AsyncGenerator[bytes, None]:
    """Yield each line that is not empty as soon as it is complete; InvalidError when one is longer than the limit."""
    pending = bytearray()
    async for chunk in chunks:
        pending += chunk
        if b"\n" in chunk:
            *lines, tail = bytes(pending).split(b"\n")
            pending = bytearray(tail)
            for line in lines:
                if line:
                    yield line
        if len(pending) > limit_bytes:
            raise InvalidError(
                f"watch: an event is longer than {limit_bytes} bytes; look at the objects' sizes", status=200
            )


async def _read_page(kind: Kind[Any], body: bytes) -> _List:
    try:
        return await decode_beside(_LIST, body)
    except UNREADABLE as error:
        raise InvalidError(
            f"list {kind}: the answer is no list ({error}); check that the address is that of an API server"
        ) from error


def _page_size(size: int, objects: int, length_bytes: int) -> int:
    """Return how many objects the next page should have, after one of at most `size` that had `objects`."""
    fitting = PAGE_BYTES * objects // max(length_bytes, 1) if objects else PAGE_SIZE
    return max(1, min(PAGE_SIZE, size * _SHORTER, fitting))


async def _read_items(
    kind: Kind[T],
    page: _List,
    items: dict[ObjectKey, StoredObject[T]],
    odd: dict[ObjectKey, str],
    quota: NamespaceQuota,
) -> None:
    """Decode a page's items one by one into `items`; put the messages of unreadable ones into `odd`."""
    turns = LoopTurns(TURN_BYTES)
    for raw in page.items or ():
        await turns.count(len(raw))
        try:
            item = kind.read(raw)
        except MalformedObjectError as error:
            key = read_meta(raw).key
            if quota.take(key):
                odd[key] = str(error)
        else:
            if quota.take(item.key):
                items[item.key] = item


async def _read_refusal(request: _Request, response: httpx2.Response) -> None:
    try:
        await response.aread()
    except httpx2.HTTPError as error:  # a proxy's 5xx is often cut off
        raise no_answer(request.operation, response.request.url.netloc.decode(), error) from error
    finally:
        await response.aclose()


def _refusal(operation: str, response: httpx2.Response) -> KubernetesError:
    return error_of(operation, response.status_code, read_status(response.content), retry_after_of(response))


def _is_later(status: int) -> bool:
    return status == httpx2.codes.TOO_MANY_REQUESTS or status >= httpx2.codes.INTERNAL_SERVER_ERROR


def _key(body: Json) -> ObjectKey:
    metadata = body["metadata"]
    return ObjectKey(metadata.get("namespace", ""), metadata["name"])


def _encode(kind: Kind[Any], body: Json) -> bytes:
    return msgspec.json.encode({"apiVersion": kind.api_version, "kind": kind.name, **body})


def _render_key(key: ObjectKey) -> str:
    return str(key) if key.namespace else key.name
