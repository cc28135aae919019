"""The rules for request heads once more, written naively, with nothing of ours or llhttp's: what the fuzzer compares.

Only heads that are plain text are judged exactly; of others it is only said that no token may be asked with them.
"""

from urllib.parse import unquote_to_bytes

TOKEN_CHARACTERS = frozenset(b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
IDS = ("client_id", "object_id", "msi_res_id", "mi_res_id")

Asked = tuple[str, str, str, str]
"""Resource, client ID, resource ID, object ID."""


def token_asked(head: bytes) -> Asked | None:
    """Say what a head asks a token of, or None when it is no token request of a pod."""
    lines = head.split(b"\r\n")
    if len(lines) < 3 or lines[-2:] != [b"", b""] or any(b"\r" in line or b"\n" in line for line in lines):
        return None
    request, headers = lines[0].split(b" "), lines[1:-2]
    if len(request) != 3 or request[0] != b"GET" or request[2] not in {b"HTTP/1.0", b"HTTP/1.1"}:
        return None
    if not _may_be_served(headers, request[2]):
        return None
    path, mark, query = request[1].partition(b"?")
    segments = path.split(b"/")
    if segments[-1] == b"" and len(segments) == 6:
        del segments[-1]
    canonical = [b"", b"metadata", b"identity", b"oauth2", b"token"]
    if [segments[0], segments[1].lower() if len(segments) > 1 else b"", *segments[2:]] != canonical or not mark:
        return None
    return _asked_in(query)


def _may_be_served(headers: list[bytes], version: bytes) -> bool:
    if len(headers) > 64:
        return False
    named = [_header(line) for line in headers]
    if None in named:
        return False
    found: dict[bytes, list[bytes]] = {}
    for one in named:
        assert one is not None
        found.setdefault(one[0], []).append(one[1])
    if [value.lower() for value in found.get(b"metadata", [])] != [b"true"]:
        return False
    if b"x-forwarded-for" in found or b"transfer-encoding" in found:
        return False
    if found.get(b"content-length", [b"0"]) != [b"0"]:
        return False
    hosts = len(found.get(b"host", []))
    return hosts == 1 or (hosts == 0 and version == b"HTTP/1.0")


def _header(line: bytes) -> tuple[bytes, bytes] | None:
    name, colon, value = line.partition(b":")
    if not colon or not name or not set(name) <= TOKEN_CHARACTERS or b"\0" in value:
        return None
    return name.lower(), value.strip(b" \t")


def _asked_in(query: bytes) -> Asked | None:
    if any(byte <= 0x20 or byte >= 0x7F or byte == 0x23 for byte in query):
        return None
    found: dict[str, str] = {}
    for pair in query.split(b"&"):
        name, equals, value = pair.partition(b"=")
        try:
            decoded = tuple(unquote_to_bytes(text.replace(b"+", b" ")).decode() for text in (name, value))
        except UnicodeDecodeError:
            return None
        if not equals or not decoded[0] or decoded[0] in found or not all(text.isprintable() for text in decoded):
            return None
        found[decoded[0]] = decoded[1]
    chosen = [name for name in IDS if found.get(name)]
    if not found.get("resource") or len(chosen) > 1:
        return None
    by_resource_id = found.get("msi_res_id") or found.get("mi_res_id") or ""
    return found["resource"], found.get("client_id", ""), by_resource_id, found.get("object_id", "")


def is_judged_exactly(head: bytes) -> bool:
    """Say whether `token_asked` must agree in both directions: no line is of a kind that llhttp may also refuse."""
    text = head.replace(b"\r\n", b"")
    unusual = (b"\nconnection:", b"\nupgrade:", b"\nproxy-connection:")
    return all(byte == 9 or 0x20 <= byte < 0x7F for byte in text) and not any(
        name in head.lower().replace(b"\r", b"") for name in unusual
    )
