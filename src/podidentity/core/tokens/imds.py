"""The Instance Metadata Service's protocol: request heads to values, values to response bytes.

A security boundary. Only an exact list of paths is known; everything else is refused on the raw request target, before
anything is decoded. What a request says is all that is here: who asks comes from the connection. `nmi.heads` has cut
the head with llhttp before. Facts: learn.microsoft.com/azure/virtual-machines/instance-metadata-service and upstream's
`pkg/nmi/server`.
"""

import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import parse_qsl

from podidentity.core.model.identities import ObjectKey
from podidentity.core.tokens.instance_fields import is_instance_field

TOKEN_PATH = "/metadata/identity/oauth2/token"  # noqa: S105  # a path
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
    401: "Unauthorized",
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
_ERRORS = {
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    429: "too_many_requests",
    500: "server_error",
}


@dataclass(frozen=True, slots=True)
class Head:
    """A request head as it came: method, raw target, headers in order with lower-case names."""

    method: bytes
    target: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()


class TokenRequest(NamedTuple):
    """A request for a token; empty texts were not in it. At most one of the three IDs is set.

    A tuple, because it is looked up with every request: hashing a dataclass takes a call of Python code.
    """

    resource: str
    client_id: str = ""
    resource_id: str = ""
    object_id: str = ""


@dataclass(frozen=True, slots=True)
class HostTokenRequest:
    """A request by a program of the node for a pod's token (the secrets-store CSI driver)."""

    pod: ObjectKey
    token_request: TokenRequest


@dataclass(frozen=True, slots=True)
class TokenFileRequest:
    """A request at the token-file door; `client_id` of its token request is set, and lower-case.

    `selector` is the parameter by which the client named the identity and its value, both as they came; empty without
    one. `proof` is the pod's own token, unchecked; "" when it has still to be asked for.
    """

    token_request: TokenRequest
    selector: tuple[str, str] = ("", "")
    proof: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Forward:
    """A metadata request that may be passed on: `target` is rebuilt, never the client's own string."""

    target: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request that gets no token: the HTTP status and the sentence that says why."""

    status: int
    message: str


ParsedRequest = TokenRequest | HostTokenRequest | TokenFileRequest | Forward | Refusal


@dataclass(frozen=True, slots=True)
class Rules:
    """The flags that change what is allowed."""

    metadata_header_required: bool = True
    block_instance_metadata: bool = False


@dataclass(frozen=True, slots=True)
class Token:
    """An access token. Times are seconds since 1970. The token itself never shows in a repr.

    `trace_id` is what Entra ID calls the request that it was issued for; "" where it is not known.
    """

    access_token: str = field(repr=False)
    expires_on: int
    not_before: int
    resource: str
    trace_id: str = ""


def parse(head: Head, rules: Rules) -> ParsedRequest:
    """Return what a request head asks for.

    The target is checked first: an odd path is refused whatever its method or headers.
    """
    if len(head.target) > TARGET_LIMIT_BYTES:
        return Refusal(414, f"the request target is over {TARGET_LIMIT_BYTES} bytes")
    path, query_mark, query = head.target.partition(b"?")
    refusal = refuse_target(path, query) or refuse_message(head)
    if refusal is not None:
        return refusal
    route, suffix = _route(path.decode("ascii"))
    if route == "token":
        return refuse_headers(head, rules) or read_token_request(query)
    if route == "host":
        return _host_request(head, query)
    if route in {"instance", "field"} and rules.block_instance_metadata:
        return Refusal(403, "instance metadata is blocked on this cluster (--block-instance-metadata)")
    if route in {"instance", "metadata"}:
        return refuse_headers(head, rules) or _forward(suffix, query, asked_query=bool(query_mark))
    if route == "almost":
        return Refusal(400, f"this is not the path of a token request; ask {TOKEN_PATH}")
    if route == "field":
        message = "no such field of instance metadata; ask /metadata/instance and read it there"
    else:
        message = "no such metadata path"
    # The header comes before the path, as upstream has it: a request without it does not learn which paths there are.
    return refuse_headers(head, rules) or Refusal(404, message)


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


@functools.lru_cache(maxsize=256)
def render_error(status: int, message: str, *, retry_after_seconds: int | None = None, challenge: str = "") -> bytes:
    """Write the whole response for a refusal, in IMDS's JSON form: SDKs lose plain text.

    Remembers the last ones: whoever floods the daemon with bad requests gets the same few.
    """
    headers = "" if retry_after_seconds is None else f"Retry-After: {retry_after_seconds}\r\n"
    if challenge:
        headers += f"WWW-Authenticate: {challenge}\r\n"
    if status == 405:  # noqa: PLR2004  # RFC 9110 wants the allowed methods named
        headers += "Allow: GET\r\n"
    error = {"error": _ERRORS.get(status, "invalid_request"), "error_description": message}
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


def refuse_target(path: bytes, query: bytes) -> Refusal | None:
    """Origin form, plain characters, no empty or dot segment. CVE-2022-23551 was a backslash that a pattern missed."""
    plain = path == b"/" or _BARE_PATH.fullmatch(path) is not None
    if not plain or any(segment in {b".", b".."} for segment in path.split(b"/")):
        return Refusal(400, "the request target is not a plain path; write it without escapes, dots or doubled slashes")
    if _QUERY.fullmatch(query) is None:
        return Refusal(400, "the query has characters that must be percent-encoded")
    return None


def refuse_message(head: Head) -> Refusal | None:
    """Return why a message is no plain GET of a client's own, or None."""
    if head.method != b"GET":
        return Refusal(405, "only GET is answered here")
    headers = dict(head.headers)
    if b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0":
        return Refusal(400, "a request here has no body; send it without Content-Length and Transfer-Encoding")
    if b"x-forwarded-for" in headers:
        return Refusal(400, "requests with X-Forwarded-For are refused; ask without a proxy")
    return None


def _route(path: str) -> tuple[str, str]:
    """Return the route and what follows `/metadata/`. The first segment may be in any case, the rest is exact."""
    first, _, suffix = path[1:].partition("/")
    suffix = suffix.removesuffix("/")
    if first.lower() == "metadata":
        return _metadata_route(suffix), suffix
    return ("host" if (first, suffix) == ("host", "token") else "unknown"), suffix


def _metadata_route(suffix: str) -> str:
    if suffix == "identity/oauth2/token":
        return "token"
    if suffix.lower().startswith("identity/oauth2"):
        return "almost"
    first, _, field = suffix.partition("/")
    if first == "instance":
        return "instance" if is_instance_field(field) else "field"
    return "metadata" if suffix in _FORWARDED_PATHS else "unknown"


def refuse_headers(head: Head, rules: Rules) -> Refusal | None:
    """Return why a request lacks what a browser or a proxy cannot be made to send, or None."""
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


def read_token_request(query: bytes) -> TokenRequest | Refusal:
    """Return the token request that a query makes."""
    parameters = _parameters(query)
    if isinstance(parameters, Refusal):
        return parameters
    resource = parameters.get("resource", "")
    if not resource:
        return Refusal(400, "Required query variable 'resource' is missing")
    ids = {
        name: value
        for name, value in parameters.items()
        if value and name in {"client_id", "object_id", *_RESOURCE_IDS}
    }
    if len(ids) > 1:
        return Refusal(400, f"{' and '.join(sorted(ids))} exclude each other; name one identity")
    resource_id = next((ids[name] for name in _RESOURCE_IDS if name in ids), "")
    return TokenRequest(resource, ids.get("client_id", ""), resource_id, ids.get("object_id", ""))


_RESOURCE_IDS = ("msi_res_id", "mi_res_id")


def _host_request(head: Head, query: bytes) -> HostTokenRequest | Refusal:
    """`/host/token`: upstream wants no Metadata header here, but the pod's name and namespace."""
    headers = dict(head.headers)
    name, namespace = headers.get(b"podname", b""), headers.get(b"podns", b"")
    if not name or not namespace:
        return Refusal(400, "the headers podname and podns must name the pod")
    request = read_token_request(query)
    if isinstance(request, Refusal):
        return request
    return HostTokenRequest(ObjectKey(namespace.decode("latin-1"), name.decode("latin-1")), request)


def _forward(suffix: str, query: bytes, *, asked_query: bool) -> Forward | Refusal:
    """Rebuild the target of a request that goes on to IMDS: checked segments, known parameters, plain values."""
    parameters = _parameters(query) if asked_query else {}
    if isinstance(parameters, Refusal):
        return parameters
    if not parameters.keys() <= _FORWARDED_PARAMETERS:
        return Refusal(400, f"only these parameters are passed on: {', '.join(sorted(_FORWARDED_PARAMETERS))}")
    if not all(_FORWARDED_VALUE.fullmatch(value) for value in parameters.values()):
        return Refusal(400, "a query parameter holds characters that are not passed on")
    text = "&".join(f"{name}={value.replace('+', '%2B')}" for name, value in sorted(parameters.items()))
    return Forward(f"/metadata/{suffix}" + (f"?{text}" if text else ""))
