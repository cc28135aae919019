"""The Instance Metadata Service's protocol: request heads to values, values to response bytes.

A security boundary. Only an exact list of paths is known; everything else is refused on the raw request target, before
anything is decoded. What a request says is all that is here: who asks comes from the connection. Called by
`nmi.http`, which has already cut the head with llhttp. Facts: learn.microsoft.com/azure/virtual-machines/
instance-metadata-service and upstream's `pkg/nmi/server`.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import parse_qsl

from podidentity.core.identities import ObjectKey

METADATA_HEADER_MISSING = "Required metadata header not specified"
HEADERS_READ = frozenset(
    {b"metadata", b"x-forwarded-for", b"transfer-encoding", b"content-length", b"podname", b"podns"}
)
"""The only headers that change what a head means; all others may be left out of a `Head`."""
TARGET_LIMIT_BYTES = 2048
"""The longest request of an SDK, by resource ID in percent-encoding, has half of it. Targets are remembered."""
_BARE_PATH = re.compile(rb"(?:/[A-Za-z0-9._~-]+)+/?")
_QUERY = re.compile(rb"[!-\"$-~]*")
_FORWARDED_VALUE = re.compile(r"[A-Za-z0-9._:+/=-]*")
_FORWARDED_PATHS = ("versions", "attested/document", "loadbalancer", "scheduledevents")
_FORWARDED_PARAMETERS = frozenset({"api-version", "format", "nonce", "extended"})
_REASONS = {
    200: "OK",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    413: "Content Too Large",
    414: "URI Too Long",
    429: "Too Many Requests",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
}
_ERRORS = {403: "forbidden", 404: "not_found", 405: "method_not_allowed", 429: "too_many_requests", 500: "server_error"}


@dataclass(frozen=True, slots=True)
class Head:
    """A request head as it came: method, raw target, headers in order with lower-case names."""

    method: bytes
    target: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()


class TokenRequest(NamedTuple):
    """What a token request asks for; empty texts were not given. At most one of the three IDs is set.

    A tuple, because it is looked up with every request: hashing a dataclass takes a call of Python code.
    """

    resource: str
    client_id: str = ""
    resource_id: str = ""
    object_id: str = ""


@dataclass(frozen=True, slots=True)
class HostTokenRequest:
    """A token for a pod, asked by a program of the node (the secrets-store CSI driver)."""

    pod: ObjectKey
    asked: TokenRequest


@dataclass(frozen=True, slots=True)
class Forward:
    """A metadata request that may be passed on: `target` is rebuilt, never the client's own string."""

    target: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """Not answered: HTTP status and the sentence that says why."""

    status: int
    why: str


Parsed = TokenRequest | HostTokenRequest | Forward | Refusal


@dataclass(frozen=True, slots=True)
class Rules:
    """The flags that change what is allowed."""

    metadata_header_required: bool = True
    block_instance_metadata: bool = False


@dataclass(frozen=True, slots=True)
class Token:
    """An access token. Times are seconds since 1970. The token itself never shows in a repr."""

    access_token: str = field(repr=False)
    expires_on: int
    not_before: int
    resource: str


def parse(head: Head, rules: Rules) -> Parsed:
    """Say what a request head asks for.

    The target is checked first: an odd path is refused whatever its method or headers.
    """
    if len(head.target) > TARGET_LIMIT_BYTES:
        return Refusal(414, f"the request target is over {TARGET_LIMIT_BYTES} bytes")
    path, query_mark, query = head.target.partition(b"?")
    refusal = _refuse_target(path, query) or _refuse_message(head)
    if refusal is not None:
        return refusal
    route, rest = _route(path.decode("ascii"))
    if route == "token":
        return _refuse_headers(head, rules) or _token_request(query)
    if route == "host":
        return _host_request(head, query)
    if route == "instance" and rules.block_instance_metadata:
        return Refusal(403, "instance metadata is blocked on this cluster (--block-instance-metadata)")
    if route in {"instance", "metadata"}:
        return _refuse_headers(head, rules) or _forward(rest, query, asked_query=bool(query_mark))
    if route == "almost":
        return Refusal(400, "this is not the path of a token request; ask /metadata/identity/oauth2/token")
    return Refusal(404, "no such metadata path")


def render_token(token: Token, now: float) -> bytes:
    """Write the whole response for one token: seven fields, every value a string, as Go's SDK needs them."""
    return render(200, token_fields(token, now))


def render_tokens(tokens: tuple[Token, ...], now: float) -> bytes:
    """Write the whole response for a service principal with auxiliary tenants: an array, primary tenant first."""
    return _response(200, json.dumps([token_fields(token, now) for token in tokens]).encode())


def token_fields(token: Token, now: float) -> dict[str, str]:
    """The fields of an answer. `expires_in` is counted at each answer: some clients trust it over `expires_on`."""
    return {
        "access_token": token.access_token,
        "refresh_token": "",
        "expires_in": str(max(0, token.expires_on - int(now))),
        "expires_on": str(token.expires_on),
        "not_before": str(token.not_before),
        "resource": token.resource,
        "token_type": "Bearer",
    }


def render_error(status: int, why: str, *, retry_after_seconds: int | None = None) -> bytes:
    """Write the whole response for a refusal, in IMDS's JSON form: SDKs lose plain text."""
    headers = "" if retry_after_seconds is None else f"Retry-After: {retry_after_seconds}\r\n"
    if status == 405:  # noqa: PLR2004  # RFC 9110 wants the allowed methods named
        headers += "Allow: GET\r\n"
    error = {"error": _ERRORS.get(status, "invalid_request"), "error_description": why}
    return _response(status, json.dumps(error).encode(), headers)


def render(status: int, body: Mapping[str, object]) -> bytes:
    """Write a whole JSON response."""
    return _response(status, json.dumps(body).encode())


def _response(status: int, body: bytes, headers: str = "") -> bytes:
    reason = _REASONS.get(status, "Unknown")
    head = (
        f"HTTP/1.1 {status} {reason}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
    )
    return head.encode("ascii") + body


def _refuse_target(path: bytes, query: bytes) -> Refusal | None:
    """Origin form, plain characters, no empty or dot segment. CVE-2022-23551 was a backslash that a pattern missed."""
    plain = path == b"/" or _BARE_PATH.fullmatch(path) is not None
    if not plain or any(segment in {b".", b".."} for segment in path.split(b"/")):
        return Refusal(400, "the request target is not a plain path; write it without escapes, dots or doubled slashes")
    if _QUERY.fullmatch(query) is None:
        return Refusal(400, "the query has characters that must be percent-encoded")
    return None


def _refuse_message(head: Head) -> Refusal | None:
    if head.method != b"GET":
        return Refusal(405, "only GET is answered here")
    headers = dict(head.headers)
    if b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0":
        return Refusal(400, "a request here has no body; send it without Content-Length and Transfer-Encoding")
    if b"x-forwarded-for" in headers:
        return Refusal(400, "requests with X-Forwarded-For are refused; ask without a proxy")
    return None


def _route(path: str) -> tuple[str, str]:
    """Name the route and give what follows `/metadata/`. The first segment may be in any case, the rest is exact."""
    first, _, rest = path[1:].partition("/")
    rest = rest.removesuffix("/")
    if first.lower() == "metadata":
        return _metadata_route(rest), rest
    return ("host" if (first, rest) == ("host", "token") else "unknown"), rest


def _metadata_route(rest: str) -> str:
    if rest == "identity/oauth2/token":
        return "token"
    if rest.lower().startswith("identity/oauth2"):
        return "almost"
    if rest == "instance" or rest.startswith("instance/"):
        return "instance"
    return "metadata" if rest in _FORWARDED_PATHS else "unknown"


def _refuse_headers(head: Head, rules: Rules) -> Refusal | None:
    values = [value for name, value in head.headers if name == b"metadata"]
    if not values and not rules.metadata_header_required:
        return None
    if len(values) != 1 or values[0].lower() != b"true":
        return Refusal(400, METADATA_HEADER_MISSING)
    return None


def _parameters(query: bytes) -> dict[str, str] | Refusal:
    """Decode a query; a name given twice is refused, as IMDS does."""
    try:
        pairs = parse_qsl(query.decode("ascii"), keep_blank_values=True, strict_parsing=bool(query), errors="strict")
    except (UnicodeDecodeError, ValueError):
        return Refusal(400, "the query cannot be decoded; write it as name=value pairs")
    parameters = dict(pairs)
    if len(parameters) != len(pairs):
        return Refusal(400, "a query parameter is given more than once")
    if not all(name and name.isprintable() and value.isprintable() for name, value in pairs):
        return Refusal(400, "a query parameter has no name, or holds control characters")
    return parameters


def _token_request(query: bytes) -> TokenRequest | Refusal:
    parameters = _parameters(query)
    if isinstance(parameters, Refusal):
        return parameters
    resource = parameters.get("resource", "")
    if not resource:
        return Refusal(400, "Required query variable 'resource' is missing")
    chosen = {
        name: value
        for name, value in parameters.items()
        if value and name in {"client_id", "object_id", *_RESOURCE_IDS}
    }
    if len(chosen) > 1:
        return Refusal(400, f"{' and '.join(sorted(chosen))} exclude each other; name one identity")
    resource_id = next((chosen[name] for name in _RESOURCE_IDS if name in chosen), "")
    return TokenRequest(resource, chosen.get("client_id", ""), resource_id, chosen.get("object_id", ""))


_RESOURCE_IDS = ("msi_res_id", "mi_res_id")


def _host_request(head: Head, query: bytes) -> HostTokenRequest | Refusal:
    """`/host/token`: upstream wants no Metadata header here, but the pod's name and namespace."""
    headers = dict(head.headers)
    name, namespace = headers.get(b"podname", b""), headers.get(b"podns", b"")
    if not name or not namespace:
        return Refusal(400, "the headers podname and podns must name the pod")
    asked = _token_request(query)
    if isinstance(asked, Refusal):
        return asked
    return HostTokenRequest(ObjectKey(namespace.decode("latin-1"), name.decode("latin-1")), asked)


def _forward(rest: str, query: bytes, *, asked_query: bool) -> Forward | Refusal:
    """Rebuild the target of a request that goes on to IMDS: checked segments, known parameters, plain values."""
    parameters = _parameters(query) if asked_query else {}
    if isinstance(parameters, Refusal):
        return parameters
    if not parameters.keys() <= _FORWARDED_PARAMETERS:
        return Refusal(400, f"only these parameters are passed on: {', '.join(sorted(_FORWARDED_PARAMETERS))}")
    if not all(_FORWARDED_VALUE.fullmatch(value) for value in parameters.values()):
        return Refusal(400, "a query parameter holds characters that are not passed on")
    text = "&".join(f"{name}={value.replace('+', '%2B')}" for name, value in sorted(parameters.items()))
    return Forward(f"/metadata/{rest}" + (f"?{text}" if text else ""))
