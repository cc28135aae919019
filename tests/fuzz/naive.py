"""The rules for request heads once more, written naively without our code or llhttp, for the fuzzer to compare with.

Only heads that are plain text are judged exactly; for other heads the rules only say that no token may be asked with
them.
"""

import re
from urllib.parse import unquote_to_bytes

TOKEN_CHARACTERS = frozenset(b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
HOST_CHARACTERS = frozenset(b"!$%&'()*+,-.0123456789:;=ABCDEFGHIJKLMNOPQRSTUVWXYZ[]_abcdefghijklmnopqrstuvwxyz~")
IDS = ("client_id", "object_id", "msi_res_id", "mi_res_id")

PROOF_CHARACTERS = frozenset(b"-0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz")
PROXIES = {b"x-forwarded-host", b"x-forwarded-proto", b"x-real-ip", b"forwarded", b"via"}
GUID = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}")

TokenParameters = tuple[str, str, str, str]
"""Resource, client ID, resource ID, object ID."""


def token_asked(head: bytes) -> TokenParameters | None:
    """Return the parameters of a pod's token request; None for any other head."""
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


def token_file_asked(head: bytes) -> tuple[str, str, str] | None:
    """Return resource, client ID and proof (which may be empty) of a token-file request; None for any other head."""
    lines = head.split(b"\r\n")
    if len(lines) < 3 or lines[-2:] != [b"", b""] or any(b"\r" in line or b"\n" in line for line in lines):
        return None
    request, headers = lines[0].split(b" "), lines[1:-2]
    if len(request) != 3 or request[0] != b"GET" or request[2] not in {b"HTTP/1.0", b"HTTP/1.1"}:
        return None
    values = _values(headers)
    if values is None or not _may_be_served(headers, request[2]) or values.keys() & PROXIES or len(request[1]) > 2048:
        return None
    proofs = values.get(b"authorization", [b"basic "])
    scheme, _, proof = proofs[0].partition(b" ")
    parts = [set(part) - PROOF_CHARACTERS for part in proof.split(b".")]
    is_proof = len(parts) == 3 and not any(parts) and b"" not in proof.split(b".") and len(proof) <= 4096
    if len(proofs) > 1 or scheme.lower() != b"basic" or not (is_proof or b"authorization" not in values):
        return None
    path, mark, query = request[1].partition(b"?")
    parameters = _asked_in(query) if mark else None
    if parameters is None or parameters[2] or parameters[3]:
        return None
    named = path.removeprefix(b"/token-file/").decode("latin-1").lower() if path != b"/token-file" else ""
    client_ids = {client_id for client_id in (named, parameters[1].lower()) if client_id}
    if path != b"/token-file" and not (path.startswith(b"/token-file/") and named):
        return None
    client_id = client_ids.pop() if len(client_ids) == 1 else ""
    return (parameters[0], client_id, proof.decode()) if GUID.fullmatch(client_id) else None


def _values(headers: list[bytes]) -> dict[bytes, list[bytes]] | None:
    """Return all values of each header; None when a line is no header."""
    values: dict[bytes, list[bytes]] = {}
    for line in headers:
        pair = _header(line)
        if pair is None:
            return None
        values.setdefault(pair[0], []).append(pair[1])
    return values


def _may_be_served(headers: list[bytes], version: bytes) -> bool:
    values = _values(headers)
    if len(headers) > 64 or values is None:
        return False
    if [value.lower() for value in values.get(b"metadata", [])] != [b"true"]:
        return False
    if b"x-forwarded-for" in values or b"transfer-encoding" in values:
        return False
    if values.get(b"content-length", [b"0"]) != [b"0"]:
        return False
    hosts = values.get(b"host", [])
    if any(set(value) - HOST_CHARACTERS for value in hosts):
        return False
    return len(hosts) == 1 or (not hosts and version == b"HTTP/1.0")


def _header(line: bytes) -> tuple[bytes, bytes] | None:
    name, colon, value = line.partition(b":")
    if not colon or not name or not set(name) <= TOKEN_CHARACTERS or b"\0" in value:
        return None
    return name.lower(), value.strip(b" \t")


def _asked_in(query: bytes) -> TokenParameters | None:
    if any(byte <= 0x20 or byte >= 0x7F or byte == 0x23 for byte in query):
        return None
    parameters: dict[str, str] = {}
    for pair in query.split(b"&"):
        name, equals, value = pair.partition(b"=")
        try:
            decoded = tuple(unquote_to_bytes(text.replace(b"+", b" ")).decode() for text in (name, value))
        except UnicodeDecodeError:
            return None
        if not equals or not decoded[0] or decoded[0] in parameters or not all(text.isprintable() for text in decoded):
            return None
        parameters[decoded[0]] = decoded[1]
    ids = [name for name in IDS if parameters.get(name)]
    if not parameters.get("resource") or len(ids) > 1:
        return None
    by_resource_id = parameters.get("msi_res_id") or parameters.get("mi_res_id") or ""
    return parameters["resource"], parameters.get("client_id", ""), by_resource_id, parameters.get("object_id", "")


def is_judged_exactly(head: bytes) -> bool:
    """Whether `token_asked` must agree in both directions: no line is of a kind that llhttp may also refuse."""
    text = head.replace(b"\r\n", b"")
    unusual = (b"\nconnection:", b"\nupgrade:", b"\nproxy-connection:")
    return all(byte == 9 or 0x20 <= byte < 0x7F for byte in text) and not any(
        name in head.lower().replace(b"\r", b"") for name in unusual
    )
