"""The token-file door's protocol: Azure Arc's dialect of the managed identity endpoint, which every SDK speaks.

A client asks without proof, is told a file (401), and asks again with what stands in it. In a pod the file is a
projected service account token: the pod proves itself, whatever its network. A security boundary, like `imds`, of
which it takes the parts that are the same. Facts: learn.microsoft.com/azure/azure-arc/servers/
managed-identity-authentication, and the SDKs' sources.
"""

from podidentity.core.model.federation import GUID, TOKEN_FILE_DIRECTORY, TOKEN_FILE_NAME, TOKEN_FILE_PATH
from podidentity.core.model.service_account_tokens import JWT
from podidentity.core.tokens.imds import (
    TARGET_LIMIT_BYTES,
    Head,
    ParsedRequest,
    Refusal,
    Rules,
    Token,
    TokenFileRequest,
    TokenRequest,
    read_token_request,
    refuse_headers,
    refuse_message,
    refuse_target,
    render,
    token_fields,
)

CHALLENGE = f"Basic realm={TOKEN_FILE_DIRECTORY}/{TOKEN_FILE_NAME}"
"""Which file holds the proof. Without quotes: SDKs take what follows the equals sign as it is."""
PROOF_LIMIT_BYTES = 4096
"""SDKs read no longer file."""
PROXY_HEADERS = frozenset(
    {b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto", b"x-real-ip", b"forwarded", b"via"}
)
"""What somebody adds who passes a request on: a program with such a proxy in it would lend its identity to others."""
HEADERS_READ = PROXY_HEADERS | {b"metadata", b"authorization", b"transfer-encoding", b"content-length"}


def parse(head: Head, rules: Rules) -> ParsedRequest:
    """Return what a request head asks for at this door."""
    if len(head.target) > TARGET_LIMIT_BYTES:
        return Refusal(414, f"the request target is over {TARGET_LIMIT_BYTES} bytes")
    path, _, query = head.target.partition(b"?")
    refusal = refuse_target(path, query) or refuse_message(head) or _refuse_proxies(head) or refuse_headers(head, rules)
    if refusal is not None:
        return refusal
    client_id = _client_id(path.decode("ascii"))
    if isinstance(client_id, Refusal):
        return client_id
    request = read_token_request(query)
    if isinstance(request, Refusal):
        return request
    proof = _proof(head)
    return proof if isinstance(proof, Refusal) else _request(request, client_id, proof)


def render_token(token: Token, selector: tuple[str, str], now: float) -> bytes:
    """Write the whole response for a token: as IMDS does, and with the selector, which newer clients look for."""
    name, value = selector
    return render(200, token_fields(token, now) | ({name: value} if name else {}))


def _refuse_proxies(head: Head) -> Refusal | None:
    if any(name in PROXY_HEADERS for name, _ in head.headers):
        return Refusal(400, "requests that were passed on are refused (X-Forwarded-For and the like); ask directly")
    return None


def _client_id(path: str) -> str | Refusal:
    """Return the client ID that the path names, in lower case; "" when it names none."""
    if path == TOKEN_FILE_PATH:
        return ""
    client_id = path.removeprefix(f"{TOKEN_FILE_PATH}/").lower()
    if GUID.fullmatch(client_id) is None:
        return Refusal(404, f"ask {TOKEN_FILE_PATH}/CLIENT_ID here, or {TOKEN_FILE_PATH} with the parameter client_id")
    return client_id


def _proof(head: Head) -> str | Refusal:
    """Return the proof as it came; "" without one."""
    values = [value for name, value in head.headers if name == b"authorization"]
    if not values:
        return ""
    scheme, _, text = values[0].partition(b" ")
    proof = text.decode("latin-1")
    if len(values) > 1 or scheme.lower() != b"basic" or len(proof) > PROOF_LIMIT_BYTES or not JWT.fullmatch(proof):
        message = (
            f"the Authorization header is wrong; send Basic and what {TOKEN_FILE_DIRECTORY}/{TOKEN_FILE_NAME} contains"
        )
        return Refusal(401, message)
    return proof


def _request(request: TokenRequest, client_id: str, proof: str) -> TokenFileRequest | Refusal:
    if request.resource_id or request.object_id:
        return Refusal(400, "an identity is named by its client ID here; give client_id in place of the other ID")
    selected = request.client_id.lower()
    if selected and client_id and selected != client_id:
        return Refusal(400, f"this pod asks for tokens of identity {client_id}, not of {request.client_id[:64]}")
    if not selected and not client_id:
        message = f"the request names no identity; ask {TOKEN_FILE_PATH}/CLIENT_ID, or give the parameter client_id"
        return Refusal(400, message)
    if selected and GUID.fullmatch(selected) is None:
        return Refusal(400, "client_id is no ID of the form 00000000-0000-0000-0000-000000000000; correct it")
    selector = ("client_id", request.client_id) if selected else ("", "")
    return TokenFileRequest(TokenRequest(request.resource, client_id or selected), selector, proof)
