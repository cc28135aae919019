"""The lab's own registry: images are pushed to it from the host, and pulled by name from there and by the nodes.

It speaks the OCI distribution specification (v1.1): blobs, monolithic and in chunks, mounts, manifests, tags. There is
no deletion, and no list of referrers. On loopback it serves the lab's user and root, and refuses what a web page could
send from a browser.
"""

import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from podidentity_lab.oci.archive import MANIFEST
from podidentity_lab.oci.errors import ImageError
from podidentity_lab.oci.names import DIGEST, REPOSITORY, TAG, is_file_name
from podidentity_lab.oci.store import JSON_LIMIT_BYTES, MIB, BlobFile, Store
from podidentity_lab.oci.uploads import Uploads

TAGS_LIMIT = 1_000
NAME_LIMIT = 128
_COUNT = re.compile("[0-9]{1,9}")
_MEDIA_TYPE = re.compile(r"[\w!#$&^.+-]{1,127}/[\w!#$&^.+-]{1,127}", re.ASCII)  # RFC 6838, 4.2; it becomes a header
_VERSION = {"Docker-Distribution-API-Version": "registry/2.0"}

FindManifest = Callable[[str, str, str], str | None]
"""Returns the digest of a manifest by registry (the one in an image's name, "" for this one), repository and tag."""
IsWelcome = Callable[[tuple[str, int], tuple[str, int]], bool]
"""Whether a connection may be served, by its ends: the client's, then ours."""
Endpoint = Callable[[Request], Awaitable[Response]]


def _is_anybody(_client: tuple[str, int], _server: tuple[str, int]) -> bool:
    return True


class _Answer(Exception):  # noqa: N818  # an answer, not a fault of the registry
    """A refusal with a status and one of the specification's codes."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.response = JSONResponse({"errors": [{"code": code, "message": message}]}, status, _VERSION)


def application(
    store: Store,
    hosts: tuple[str, ...],
    is_welcome: IsWelcome = _is_anybody,
    *,
    writable: bool,
    find: FindManifest | None = None,
) -> ASGIApp:
    """Serve the images that were pushed into `store` at the addresses `hosts`.

    Without `writable`, to pull only. `is_welcome` says who may use it, as for the gateway. With `find` it stands for
    other registries as well: which one is in the query `ns`, as containerd sends it to a mirror.
    """
    registry = _Registry(store, is_welcome, find)
    blob, upload, manifest = (
        "/v2/{name:path}/blobs/{digest}",
        "/v2/{name:path}/blobs/uploads/",
        "/v2/{name:path}/manifests",
    )
    routes = [
        Route("/v2/", registry.answering(registry.show_version)),
        Route("/v2/{name:path}/tags/list", registry.answering(registry.list_tags)),
        Route(f"{manifest}/{{reference}}", registry.answering(registry.show_manifest), methods=["GET", "HEAD"]),
    ]
    if writable:
        routes += [
            Route(f"{manifest}/{{reference}}", registry.answering(registry.take_manifest), methods=["PUT"]),
            Route(upload, registry.answering(registry.begin_upload), methods=["POST"]),
            Route(f"{upload}{{id}}", registry.answering(registry.take_chunk), methods=["PATCH"]),
            Route(f"{upload}{{id}}", registry.answering(registry.finish_upload), methods=["PUT"]),
            Route(f"{upload}{{id}}", registry.answering(registry.show_upload), methods=["GET"]),
            Route(f"{upload}{{id}}", registry.answering(registry.cancel_upload), methods=["DELETE"]),
        ]
    routes.append(Route(blob, registry.answering(registry.show_blob), methods=["GET", "HEAD"]))
    middleware = [Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))]
    return Starlette(routes=routes, middleware=middleware, lifespan=registry.lifespan)


class _Registry:
    """The endpoints."""

    def __init__(self, store: Store, is_welcome: IsWelcome, find: FindManifest | None) -> None:
        self._store = store
        self._is_welcome = is_welcome
        self._find = find or (lambda _host, name, tag: store.find("pushed", f"{name}:{tag}"))
        self._uploads = Uploads(store)

    @asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        """Forget uploads at the end that nobody has ended."""
        try:
            yield
        finally:
            self._uploads.close()

    def answering(self, endpoint: Endpoint) -> Endpoint:
        """Return an endpoint that answers refusals as the specification says."""

        async def answer(request: Request) -> Response:
            try:
                self._check(request)
                return await endpoint(request)
            except _Answer as answer:
                return answer.response
            except ImageError as error:
                return _Answer(400, "DIGEST_INVALID", str(error)).response
            except OSError as error:
                return _Answer(507, "UNSUPPORTED", f"the registry cannot store it: {error.strerror}").response
            except ClientDisconnect:
                return Response(status_code=400)

        return answer

    def _check(self, request: Request) -> None:
        """Refuse other users of the machine, web pages, and what is no name."""
        client, server = request.scope.get("client"), request.scope.get("server")
        if not (client and server and self._is_welcome(tuple(client), tuple(server))):
            raise _Answer(403, "DENIED", "this lab is another user's; start one of your own: podidentity lab up")
        if request.method not in {"GET", "HEAD"} and "origin" in request.headers:
            raise _Answer(403, "DENIED", "a web page may not push to the lab's registry")
        name = request.path_params.get("name")
        if name is not None and not (REPOSITORY.fullmatch(name) and len(name) <= NAME_LIMIT):
            raise _Answer(400, "NAME_INVALID", f"{name!r} is no name of a repository")

    async def show_version(self, _: Request) -> Response:
        """Say that this is a registry."""
        return JSONResponse({}, headers=_VERSION)

    async def list_tags(self, request: Request) -> Response:
        """List a repository's tags, `n` of them behind `last`."""
        name = request.path_params["name"]
        prefix = f"{name}:"
        tags = [key.removeprefix(prefix) for key in self._store.names("pushed") if key.startswith(prefix)]
        if not tags:
            raise _Answer(404, "NAME_UNKNOWN", f"{name}: nothing was pushed to it")
        last, number = request.query_params.get("last", ""), request.query_params.get("n", "")
        count = min(int(number), TAGS_LIMIT) if _COUNT.fullmatch(number) else TAGS_LIMIT
        page = [tag for tag in tags if tag > last]
        headers = {**_VERSION}
        if len(page) > count > 0:
            headers["Link"] = f'</v2/{name}/tags/list?n={count}&last={page[count - 1]}>; rel="next"'
        return JSONResponse({"name": name, "tags": page[:count]}, headers=headers)

    async def show_blob(self, request: Request) -> Response:
        """Answer a blob, or a range of it."""
        digest = request.path_params["digest"]
        path = self._store.blob(digest)
        if not DIGEST.fullmatch(digest) or not path.is_file():
            raise _Answer(404, "BLOB_UNKNOWN", f"{digest}: it was never pushed")
        headers = {**_VERSION, "Docker-Content-Digest": digest}
        return FileResponse(path, headers=headers, media_type="application/octet-stream")

    async def begin_upload(self, request: Request) -> Response:
        """Begin an upload; end it as well when the digest comes along; do nothing for a blob that is here."""
        mount, digest = request.query_params.get("mount", ""), request.query_params.get("digest", "")
        if DIGEST.fullmatch(mount) and self._store.blob(mount).is_file():
            return self._acceptance(request, "blobs", mount)
        identifier = self._uploads.begin()
        if digest:
            return await self._finish(request, identifier, digest)
        return self._progress(request, identifier, 202)

    async def take_chunk(self, request: Request) -> Response:
        """Add a chunk to an upload."""
        identifier, blob = self._upload(request)
        self._check_range(request, blob)
        await self._write(request, identifier, blob)
        return self._progress(request, identifier, 202)

    async def finish_upload(self, request: Request) -> Response:
        """Add the last chunk, if any, and keep the blob."""
        identifier, blob = self._upload(request)
        self._check_range(request, blob)
        return await self._finish(request, identifier, request.query_params.get("digest", ""))

    async def show_upload(self, request: Request) -> Response:
        """Say how far an upload has come."""
        identifier, _ = self._upload(request)
        return self._progress(request, identifier, 204)

    async def cancel_upload(self, request: Request) -> Response:
        """Forget an upload."""
        identifier, _ = self._upload(request)
        self._uploads.cancel(identifier)
        return Response(status_code=204, headers=_VERSION)

    async def show_manifest(self, request: Request) -> Response:
        """Answer a manifest by its tag or digest."""
        name, reference = request.path_params["name"], request.path_params["reference"]
        host = request.query_params.get("ns", "")
        digest = reference if DIGEST.fullmatch(reference) else self._find(host, name, reference)
        if digest is None or not self._store.blob(digest).is_file():
            raise _Answer(404, "MANIFEST_UNKNOWN", f"{name}:{reference} was never pushed")
        kind = str(self._store.read_json(digest).get("mediaType") or "")
        headers = {**_VERSION, "Docker-Content-Digest": digest}
        return Response(
            self._store.blob(digest).read_bytes(), 200, headers, kind if _MEDIA_TYPE.fullmatch(kind) else MANIFEST
        )

    async def take_manifest(self, request: Request) -> Response:
        """Keep a manifest, all of whose blobs are here, and let its tag lead to it."""
        name, reference = request.path_params["name"], request.path_params["reference"]
        content = await self._small_body(request)
        self._check_manifest(content)
        is_digest = bool(DIGEST.fullmatch(reference))
        if not (is_digest or TAG.fullmatch(reference)):
            raise _Answer(400, "MANIFEST_INVALID", f"{reference!r} is neither a tag nor a digest")
        if not is_file_name(f"{name}:{reference}"):
            raise _Answer(400, "NAME_INVALID", f"{name}:{reference} is too long for a file's name; push a shorter one")
        digest = self._store.write_blob(content, reference if is_digest else "")
        if not is_digest:
            self._store.name("pushed", f"{name}:{reference}", digest)
        return self._acceptance(request, "manifests", digest)

    async def _small_body(self, request: Request) -> bytes:
        content = bytearray()
        async for chunk in request.stream():
            content += chunk
            if len(content) > JSON_LIMIT_BYTES:
                raise _Answer(413, "SIZE_INVALID", f"the manifest is larger than {JSON_LIMIT_BYTES // MIB} MiB")
        return bytes(content)

    def _check_manifest(self, content: bytes) -> None:
        try:
            manifest = json.loads(content)
        except (ValueError, RecursionError):
            manifest = None
        if not isinstance(manifest, dict):
            raise _Answer(400, "MANIFEST_INVALID", "the manifest is no JSON object")
        items: list[Any] = [manifest["config"]] if "config" in manifest else []
        for field in ("layers", "manifests"):
            items += manifest[field] if isinstance(manifest.get(field), list) else []
        for item in items:
            digest = str(item.get("digest")) if isinstance(item, dict) else ""
            if not DIGEST.fullmatch(digest) or not self._store.blob(digest).is_file():
                raise _Answer(400, "MANIFEST_BLOB_UNKNOWN", f"{digest}: the manifest names it, but it was never pushed")

    def _upload(self, request: Request, identifier: str = "") -> tuple[str, BlobFile]:
        identifier = identifier or request.path_params["id"]
        blob = self._uploads.find(identifier)
        if blob is None:
            raise _Answer(404, "BLOB_UPLOAD_UNKNOWN", f"{identifier}: there is no such upload; begin it again")
        return identifier, blob

    def _check_range(self, request: Request, blob: BlobFile) -> None:
        """Refuse a chunk that does not continue the upload."""
        start = request.headers.get("content-range", "").partition("-")[0]
        if start and start != str(blob.size):
            raise _Answer(416, "BLOB_UPLOAD_INVALID", f"the next byte of the upload is number {blob.size}, not {start}")

    async def _write(self, request: Request, identifier: str, blob: BlobFile) -> None:
        try:
            async for chunk in request.stream():
                if not blob.file.closed:  # otherwise it has given way to others, which the answer says
                    blob.write(chunk)
        except ImageError as error:
            self._uploads.cancel(identifier)
            raise _Answer(413, "SIZE_INVALID", str(error)) from None
        except OSError as error:
            self._uploads.cancel(identifier)
            raise _Answer(507, "UNSUPPORTED", f"the blob cannot be stored: {error.strerror}") from None

    async def _finish(self, request: Request, identifier: str, digest: str) -> Response:
        blob = self._uploads.find(identifier)
        if blob is None or not DIGEST.fullmatch(digest):
            self._uploads.cancel(identifier)
            raise _Answer(400, "DIGEST_INVALID", f"{digest!r} is no SHA-256 digest")
        await self._write(request, identifier, blob)
        self._upload(request, identifier)  # it may have given way to others meanwhile
        return self._acceptance(request, "blobs", self._uploads.finish(identifier, digest))

    def _progress(self, request: Request, identifier: str, status: int) -> Response:
        blob = self._uploads.find(identifier)
        size = blob.size if blob is not None else 0
        location = f"/v2/{request.path_params['name']}/blobs/uploads/{identifier}"
        headers = {"Location": location, "Range": f"0-{max(size - 1, 0)}", "Docker-Upload-UUID": identifier}
        return Response(status_code=status, headers={**_VERSION, **headers})

    def _acceptance(self, request: Request, kind: str, digest: str) -> Response:
        location = f"/v2/{request.path_params['name']}/{kind}/{digest}"
        return Response(status_code=201, headers={**_VERSION, "Location": location, "Docker-Content-Digest": digest})
