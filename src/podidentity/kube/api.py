"""Requests to the Kubernetes API: list, get, create, replace, patch, delete, and the raw lines of a watch.

Each is one method; failures are the KubernetesError of their kind. The pace is the server's: an answer 429, or 5xx with
Retry-After, is asked again when it says. Remembers nothing: that is `reflector` and `store`.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import httpx2
import msgspec

from podidentity.core.identities import ObjectKey
from podidentity.errors import InvalidError, KubernetesError, MalformedObjectError
from podidentity.kube.answers import error_of, no_answer, read_status, retry_after_of
from podidentity.kube.clock import SYSTEM_CLOCK, Clock
from podidentity.kube.connection import ANSWER_TIMEOUT_SECONDS
from podidentity.kube.resources import Json, Kind, Stored, read_meta

T = TypeVar("T")

PAGE_SIZE = 500
"""Objects in one answer, as client-go has it: some 5 MB of pods at most, decoded in under 10 ms."""

TRIES = 10
"""How often a request is sent while the server asks to come back later, as client-go has it."""

LINE_LIMIT_BYTES = 16 * 1024 * 1024
"""Longest line of a watch: etcd stores at most 1.5 MB an object by default, JSON may be several times that."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Selection:
    """Which objects of a kind: all by default. Selectors are the API's (`aadpodidbinding`, `spec.nodeName=n1`)."""

    namespace: str = ""
    labels: str = ""
    fields: str = ""

    def parameters(self) -> dict[str, str]:
        """Return the query parameters."""
        wanted = {"labelSelector": self.labels, "fieldSelector": self.fields}
        return {name: value for name, value in wanted.items() if value}


EVERYTHING = Selection()


@dataclass(frozen=True, slots=True)
class Listed(Generic[T]):
    """A list: what could be read, what could not and why, and the version from which to watch."""

    items: Mapping[ObjectKey, Stored[T]]
    version: str
    odd: Mapping[ObjectKey, str] = field(default_factory=dict)

    @property
    def values(self) -> tuple[T, ...]:
        """The values alone."""
        return tuple(stored.value for stored in self.items.values())


@dataclass(frozen=True, slots=True)
class _Request:
    """One request; `what` is its name in errors."""

    what: str
    method: str
    path: str
    parameters: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    content_type: str = "application/json"


class _ListMeta(msgspec.Struct, rename="camel"):
    resource_version: str = ""
    continue_: str = msgspec.field(default="", name="continue")


class _List(msgspec.Struct):
    # Items stay bytes: one that cannot be read must not cost the page.
    metadata: _ListMeta = msgspec.field(default_factory=_ListMeta)
    items: list[msgspec.Raw] | None = None


_LIST = msgspec.json.Decoder(_List)


class Pace:
    """At most `per_second` requests, with a burst of as many; 0 sets no limit and leaves the pace to the server."""

    def __init__(self, per_second: float = 0.0, clock: Clock = SYSTEM_CLOCK) -> None:
        self._per_second = per_second
        self._clock = clock
        self._next = clock.now() - 1.0

    async def wait(self) -> None:
        """Return when the next request may start."""
        if self._per_second <= 0:
            return
        now = self._clock.now()
        self._next = max(self._next + 1.0 / self._per_second, now - 1.0)
        if self._next > now:
            await self._clock.sleep(self._next - now)


class Api:
    """The Kubernetes API through one authenticated client (`connection.open_client`), which stays the caller's."""

    def __init__(self, http: httpx2.AsyncClient, clock: Clock = SYSTEM_CLOCK, pace: Pace | None = None) -> None:
        self.clock = clock
        self._http = http
        self._pace = pace or Pace()

    async def list(self, kind: Kind[T], where: Selection = EVERYTHING) -> Listed[T]:
        """List all selected objects, page by page. Odd ones are left out, named in `odd` and logged."""
        items: dict[ObjectKey, Stored[T]] = {}
        odd: dict[ObjectKey, str] = {}
        parameters = {**where.parameters(), "limit": str(PAGE_SIZE)}
        while True:
            response = await self._send(_Request(f"list {kind}", "GET", kind.path(where.namespace), parameters))
            page = _read_page(kind, response.content)
            _read_items(kind, page, items, odd)
            if not page.metadata.continue_:
                return Listed(items, page.metadata.resource_version, odd)
            parameters["continue"] = page.metadata.continue_

    async def server_version(self) -> str:
        """Ask which version of Kubernetes answers."""
        response = await self._send(_Request("get the version", "GET", "/version"))
        try:
            return str(msgspec.json.decode(response.content)["gitVersion"])
        except (msgspec.MsgspecError, KeyError, TypeError):
            raise InvalidError("get the version: the answer is none; is that address an API server?") from None

    async def get(self, kind: Kind[T], key: ObjectKey) -> T:
        """Read one object."""
        response = await self._send(_Request(f"get {kind} {_shown(key)}", "GET", kind.path(*key)))
        return kind.read(response.content).value

    async def create(self, kind: Kind[T], body: Json) -> T:
        """Create an object from its whole JSON form; ConflictError when it exists."""
        key = _key(body)
        request = _Request(f"create {kind} {_shown(key)}", "POST", kind.path(key.namespace), body=_written(kind, body))
        return kind.read((await self._send(request)).content).value

    async def replace(self, kind: Kind[T], body: Json) -> T:
        """Write an object whole; ConflictError when its `metadata.resourceVersion` is not the stored one."""
        key = _key(body)
        request = _Request(f"update {kind} {_shown(key)}", "PUT", kind.path(*key), body=_written(kind, body))
        return kind.read((await self._send(request)).content).value

    async def patch(self, kind: Kind[T], key: ObjectKey, change: Json | Sequence[Json]) -> T:
        """Change parts of an object: a mapping is a merge patch (RFC 7396), a sequence a JSON patch (RFC 6902)."""
        form = "merge-patch" if isinstance(change, Mapping) else "json-patch"
        request = _Request(
            f"patch {kind} {_shown(key)}",
            "PATCH",
            kind.path(*key),
            body=msgspec.json.encode(change),
            content_type=f"application/{form}+json",
        )
        return kind.read((await self._send(request)).content).value

    async def delete(self, kind: Kind[Any], key: ObjectKey, *, uid: str = "", version: str = "") -> None:
        """Delete an object; with `uid` or `version` only that one, else ConflictError."""
        wanted = {"uid": uid, "resourceVersion": version}
        preconditions = {name: value for name, value in wanted.items() if value}
        options = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": preconditions}
        body = msgspec.json.encode(options) if preconditions else None
        await self._send(_Request(f"delete {kind} {_shown(key)}", "DELETE", kind.path(*key), body=body))

    @asynccontextmanager
    async def watch(
        self, kind: Kind[Any], where: Selection, version: str, *, silence_seconds: float, duration_seconds: int
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Watch from `version` on: entering returns when the server agreed, then each event is one line.

        The server ends it after `duration_seconds`; a silence longer than `silence_seconds` is httpx2.ReadTimeout.
        """
        request = _Request(
            f"watch {kind}",
            "GET",
            kind.path(where.namespace),
            where.parameters()
            | {
                "watch": "true",
                "allowWatchBookmarks": "true",
                "resourceVersion": version,
                "timeoutSeconds": str(duration_seconds),
            },
        )
        await self._pace.wait()
        built = self._build(request)
        built.extensions["timeout"] = {**built.extensions["timeout"], "read": silence_seconds}
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_SECONDS):
                response = await self._answer(request, built, stream=True)
        except TimeoutError as error:
            raise no_answer(request.what, built.url.netloc.decode(), error) from error
        try:
            if not response.is_success:
                try:
                    await response.aread()
                except httpx2.HTTPError as error:  # a proxy's 5xx is often cut off
                    raise no_answer(request.what, built.url.netloc.decode(), error) from error
                raise _refusal(request.what, response)
            async with aclosing(split_lines(response.aiter_bytes())) as lines:
                yield lines
        finally:
            await response.aclose()

    async def _send(self, request: _Request) -> httpx2.Response:
        """Send, as often as the server asks to come back later; any answer but 2xx is an error."""
        for left in reversed(range(TRIES)):
            await self._pace.wait()
            response = await self._answer(request, self._build(request))
            if response.is_success:
                return response
            wait = retry_after_of(response)
            if not left or wait is None or not _is_later(response.status_code):
                break
            await self.clock.sleep(wait)
        raise _refusal(request.what, response)

    def _build(self, request: _Request) -> httpx2.Request:
        headers = {"Content-Type": request.content_type} if request.body is not None else {}
        return self._http.build_request(
            request.method, request.path, params=request.parameters, content=request.body, headers=headers
        )

    async def _answer(self, request: _Request, built: httpx2.Request, *, stream: bool = False) -> httpx2.Response:
        try:
            return await self._http.send(built, stream=stream)
        except httpx2.HTTPError as error:
            raise no_answer(request.what, built.url.netloc.decode(), error) from error


async def split_lines(chunks: AsyncIterator[bytes], limit_bytes: int = LINE_LIMIT_BYTES) -> AsyncGenerator[bytes, None]:
    """Yield each line that is not empty as soon as it is complete; InvalidError when one is longer than the limit."""
    pending = bytearray()
    async for chunk in chunks:
        pending += chunk
        if b"\n" in chunk:
            *lines, rest = bytes(pending).split(b"\n")
            pending = bytearray(rest)
            for line in lines:
                if line:
                    yield line
        if len(pending) > limit_bytes:
            raise InvalidError(
                f"watch: an event is longer than {limit_bytes} bytes; look at the objects' sizes", status=200
            )


def _read_page(kind: Kind[Any], body: bytes) -> _List:
    try:
        return _LIST.decode(body)
    except msgspec.MsgspecError as error:
        raise InvalidError(f"list {kind}: the answer is no list ({error}); is that address an API server?") from error


def _read_items(kind: Kind[T], page: _List, items: dict[ObjectKey, Stored[T]], odd: dict[ObjectKey, str]) -> None:
    """Decode a page's items one by one into `items`, the unreadable ones into `odd`."""
    for raw in page.items or ():
        try:
            stored = kind.read(raw)
        except MalformedObjectError as error:
            odd[read_meta(raw).key] = str(error)
            _log.warning("list %s: ignored: %s", kind, error)
        else:
            items[stored.key] = stored


def _refusal(what: str, response: httpx2.Response) -> KubernetesError:
    return error_of(what, response.status_code, read_status(response.content), retry_after_of(response))


def _is_later(status: int) -> bool:
    return status == httpx2.codes.TOO_MANY_REQUESTS or status >= httpx2.codes.INTERNAL_SERVER_ERROR


def _key(body: Json) -> ObjectKey:
    metadata = body["metadata"]
    return ObjectKey(metadata.get("namespace", ""), metadata["name"])


def _written(kind: Kind[Any], body: Json) -> bytes:
    return msgspec.json.encode({"apiVersion": kind.api_version, "kind": kind.name, **body})


def _shown(key: ObjectKey) -> str:
    return str(key) if key.namespace else key.name
