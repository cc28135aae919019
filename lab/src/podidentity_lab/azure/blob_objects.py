"""Block blobs of one container: put, in one piece or block by block, read, listed by their blocks, changed, deleted."""

import base64
import hashlib
import secrets
from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import Response

from podidentity_lab.azure import blob_rules, blob_xml, bodies
from podidentity_lab.azure.blob_rules import BlobError
from podidentity_lab.azure.state import Blob, Container

LARGEST_BODY = 256 * 2**20  # of one request; Azure takes 5000 MiB, but all of this is in memory
_LARGEST_LIST = 16 * 2**20  # of the XML of the most blocks that a list may have, each ID as long as it may be
_HEADERS = (
    "Content-Type",
    "Content-Encoding",
    "Content-Language",
    "Content-MD5",
    "Cache-Control",
    "Content-Disposition",
)
_ENCRYPTED = {"x-ms-request-server-encrypted": "true"}
_FOREIGN = ("x-ms-copy-source", "x-ms-lease-id", "x-ms-encryption-key")


class Blobs:
    """What one request does to a blob."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock

    async def serve(self, request: Request, container: Container, name: str, query: dict[str, str]) -> Response:
        """Answer a request for the blob called `name`. Raises `BlobError`."""
        _check(request, name, query)
        blob = container.blobs.get(name)
        part = query.get("comp", "")
        match request.method, part:
            case (("GET" | "HEAD"), ("" | "metadata")):
                return _read(request, blob)
            case "GET", "blocklist":
                committed_blocks = blob.blocks if blob else {}
                uncommitted_blocks = {key: len(data) for key, data in container.uncommitted.get(name, {}).items()}
                body = blob_xml.blocks(committed_blocks, uncommitted_blocks)
                return Response(body, media_type="application/xml")
            case "PUT", ("metadata" | "properties"):
                return self._change(request, blob, part)
            case "DELETE", "":
                _require(request, blob, is_read=False)
                del container.blobs[name]
                container.uncommitted.pop(name, None)
                return Response(status_code=202)
            case "PUT", ("" | "block" | "blocklist"):
                return await self._write(request, container, name, query)
        message = f"The lab's blobs do not have {request.method} with comp={part}."
        raise BlobError(400, "InvalidQueryParameterValue", message)

    async def _write(self, request: Request, container: Container, name: str, query: dict[str, str]) -> Response:
        """Put a blob in one piece, or a block, or the list of blocks that makes the blob."""
        body = await _body(request)
        if query.get("comp") == "block":
            block_id = query.get("blockid", "")
            blob_rules.check_block_id(block_id)
            blob_rules.check_block_count(container.uncommitted.get(name, {}), block_id)
            container.uncommitted.setdefault(name, {})[block_id] = body
            return Response(status_code=201, headers=_ENCRYPTED)
        if query.get("comp") == "blocklist":
            blocks = (container.blobs.get(name), container.uncommitted.get(name, {}))
            return self._replace(request, container, name, blob_rules.join_blocks(blob_xml.block_list(body), *blocks))
        if request.headers.get("x-ms-blob-type") != "BlockBlob":
            message = "The lab has block blobs only: send the header x-ms-blob-type: BlockBlob."
            raise BlobError(400, "InvalidHeaderValue", message)
        return self._replace(request, container, name, (body, None))

    def _replace(
        self, request: Request, container: Container, name: str, source: tuple[bytes, dict[str, int] | None]
    ) -> Response:
        """Put a blob with its content and the sizes of its blocks (None: in one piece), unless a condition says no."""
        previous_blob = container.blobs.get(name)
        _check_condition(request, previous_blob, is_read=False)
        content, blocks = source
        now = int(self._clock())
        headers = _content_headers(request, of_body=blocks is None)
        if blocks is None:
            headers["Content-MD5"] = _md5(content)
        created_at = previous_blob.created_at if previous_blob else now
        blob = Blob(content, new_etag(), now, created_at, headers, metadata_of(request), blocks or {})
        container.blobs[name] = blob
        container.uncommitted.pop(name, None)
        md5 = {"Content-MD5": headers["Content-MD5"]} if "Content-MD5" in headers else {}
        return Response(status_code=201, headers={**_validators(blob), **md5, **_ENCRYPTED})

    def _change(self, request: Request, blob: Blob | None, part: str) -> Response:
        """Replace the metadata or the HTTP headers of a blob."""
        blob = _require(request, blob, is_read=False)
        if part == "metadata":
            blob.metadata = metadata_of(request)
        else:
            blob.headers = _content_headers(request, of_body=False)
        blob.etag, blob.modified_at = new_etag(), int(self._clock())
        return Response(headers=_validators(blob))


def _check(request: Request, name: str, query: dict[str, str]) -> None:
    """Refuse what the lab's blobs do not have rather than answering as if it had not been asked for."""
    blob_rules.check_blob_name(name)
    for header in _FOREIGN:
        if header in request.headers:
            raise BlobError(400, "UnsupportedHeader", f"The lab's blobs do not have the header {header}.")
    for parameter in ("snapshot", "versionid"):
        if parameter in query:
            raise BlobError(400, "InvalidQueryParameterValue", f"The lab's blobs have no {parameter}.")


def _read(request: Request, blob: Blob | None) -> Response:
    blob = _require(request, blob, is_read=True)
    headers = {
        **_validators(blob),
        **blob.headers,
        **{f"x-ms-meta-{title}": value for title, value in blob.metadata.items()},
        "Accept-Ranges": "bytes",
        "x-ms-blob-type": "BlockBlob",
        "x-ms-creation-time": blob_xml.http_date(blob.created_at),
        "x-ms-lease-status": "unlocked",
        "x-ms-lease-state": "available",
        "x-ms-server-encrypted": "true",
        "x-ms-access-tier": "Hot",
        "x-ms-access-tier-inferred": "true",
    }
    size = len(blob.content)
    text = request.headers.get("x-ms-range") or request.headers.get("range", "")
    part = blob_rules.byte_range(text, size) if request.method == "GET" else None
    if part is None:
        return Response(blob.content, headers=headers)
    start, end = part
    content = blob.content[start:end]
    if "Content-MD5" in headers:
        headers["x-ms-blob-content-md5"] = headers.pop("Content-MD5")
    if request.headers.get("x-ms-range-get-content-md5", "").lower() == "true":
        headers["Content-MD5"] = _md5(content)
    return Response(content, 206, {**headers, "Content-Range": f"bytes {start}-{end - 1}/{size}"})


def _require(request: Request, blob: Blob | None, *, is_read: bool) -> Blob:
    """Return the blob, unless there is none or a condition of the request does not hold."""
    if blob is None:
        raise BlobError(404, "BlobNotFound", "The specified blob does not exist.")
    _check_condition(request, blob, is_read=is_read)
    return blob


def _check_condition(request: Request, blob: Blob | None, *, is_read: bool) -> None:
    unmet = blob_rules.unmet_condition(request.headers, blob, is_read=is_read)
    if unmet is not None:
        message = (
            "The specified blob already exists."
            if unmet.code == "BlobAlreadyExists"
            else "The condition specified using HTTP conditional header(s) is not met."
        )
        raise BlobError(unmet.status, unmet.code, message)


async def _body(request: Request) -> bytes:
    """Return the body. Raises `BlobError` when it is too large, or not the one that Content-MD5 says."""
    limit = _LARGEST_LIST if request.query_params.get("comp") == "blocklist" else LARGEST_BODY
    try:
        content = await bodies.read(request, limit)
    except bodies.TooLargeError:
        message = f"The lab takes at most {limit} bytes in this request; put larger blobs block by block."
        raise BlobError(413, "RequestBodyTooLarge", message) from None
    md5 = request.headers.get("content-md5")
    if md5 and md5 != _md5(content):
        message = "The MD5 value specified in the request did not match with the MD5 value calculated by the server."
        raise BlobError(400, "Md5Mismatch", message)
    return content


def _content_headers(request: Request, *, of_body: bool) -> dict[str, str]:
    """Return the HTTP headers that reads of the blob will have: `x-ms-blob-...`, or those of the request's own body."""
    headers = {"Content-Type": "application/octet-stream"}
    for title in _HEADERS:
        body_header = request.headers.get(title.lower()) if of_body and title != "Content-MD5" else None
        value = request.headers.get(f"x-ms-blob-{title.lower()}") or body_header
        if value:
            headers[title] = value
    return headers


def metadata_of(request: Request) -> dict[str, str]:
    """Return what the headers `x-ms-meta-NAME` say, by name. Raises `BlobError`."""
    start = "x-ms-meta-"
    metadata = {name.removeprefix(start): value for name, value in request.headers.items() if name.startswith(start)}
    blob_rules.check_metadata(metadata)
    return metadata


def _validators(blob: Blob) -> dict[str, str]:
    return {"ETag": blob.etag, "Last-Modified": blob_xml.http_date(blob.modified_at)}


def new_etag() -> str:
    """Return an ETag that nothing had yet."""
    return f'"0x8{secrets.token_hex(7).upper()}"'


def _md5(content: bytes) -> str:
    return base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()
