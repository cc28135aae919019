"""Coverage-guided fuzzing of the way from bytes to a request: `python tests/fuzz/heads.py -max_total_time=30 CORPUS`.

atheris (libFuzzer) makes up heads, guided by the branches that they reach in `imds` and `nmi.heads`. `check` says what
must hold for each head, and `check_token_file` what must hold at the token-file door; the suite also runs both on every
seed and every hostile request.
"""

import importlib
import re
import sys
from pathlib import Path

if __name__ == "__main__":
    import atheris

    sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "src")]
    with atheris.instrument_imports(include=["podidentity.core.tokens", "podidentity.nmi.heads"]):
        importlib.import_module("podidentity.nmi.heads")

from fuzz import naive
from podidentity.core.tokens.imds import (
    Forward,
    HostTokenRequest,
    Refusal,
    Rules,
    TokenFileRequest,
    TokenRequest,
)
from podidentity.nmi.heads import TOKEN_FILE, Heads, deciding_lines, without_request_id

FORWARDED = re.compile(
    r"/metadata/(?:instance(?:/[A-Za-z0-9._~-]+)*|versions|attested/document|loadbalancer|scheduledevents)"
    r"(?:\?(?:(?:api-version|format|nonce|extended)=[A-Za-z0-9._:%/=-]*&?)*)?"
)
REQUEST_ID = b"\r\nx-ms-client-request-id: "
HARMLESS = b"\r\nX-Request-Id: 8c9e4d62-0000-4b0e-9d52-3f7a5d0f9f11"

_long_lived = Heads(Rules())


def check(head: bytes) -> None:
    """Check one head against everything that must hold for it."""
    meaning = Heads(Rules()).understand(head)
    assert _long_lived.understand(head) == meaning, "what was understood before changed the answer"
    assert _long_lived.understand(head) == meaning, "the memory changed the answer"
    request = meaning.request
    if isinstance(request, Forward):
        assert FORWARDED.fullmatch(request.target), request
        assert not any(segment in {".", ".."} for segment in request.target.partition("?")[0].split("/")), request
    if isinstance(request, HostTokenRequest):
        assert re.match(rb"GET /host/token/?\?", head), head
    expectation = naive.token_asked(head)
    result = None
    if isinstance(request, TokenRequest):
        result = request.resource, request.client_id, request.resource_id, request.object_id
        assert result == expectation, f"{result} was understood, {expectation} was asked"
    elif expectation is not None and naive.is_judged_exactly(head):
        raise AssertionError(f"refused without need: {request}")
    if isinstance(request, Refusal):
        assert 400 <= request.status < 500, request
    _check_memory(head)


def check_token_file(head: bytes) -> None:
    """Check one head against everything that must hold for it at the token-file door."""
    heads = Heads(Rules(), TOKEN_FILE)
    request = heads.understand(head).request
    assert heads.recall(head) is None, "a head with a proof in it is remembered"
    expectation = naive.token_file_asked(head)
    if isinstance(request, TokenFileRequest):
        result = request.token_request.resource, request.token_request.client_id, request.proof
        assert result == expectation, f"{result} was understood, {expectation} was asked"
    else:
        assert isinstance(request, Refusal), request
        assert 400 <= request.status < 500, request
        if expectation is not None and naive.is_judged_exactly(head):
            raise AssertionError(f"refused without need: {request}")


def _check_memory(head: bytes) -> None:
    """Check that lines which are left out of the memory's key decide nothing, whether they are there or not."""
    lines = deciding_lines(head)
    if lines is None:
        return
    meaning = Heads(Rules()).understand(head)
    if without_request_id(head) is not None:
        position = head.index(REQUEST_ID) + len(REQUEST_ID)
        other = head[:position] + b"0" + head[position:]
        assert Heads(Rules()).understand(other) == meaning, "the request ID decided something"
    assert Heads(Rules()).understand(lines + b"\r\n\r\n") == meaning, "a line that was left out decided something"
    if head.count(b"\r\n") < 60:
        longer = head[:-4] + HARMLESS + head[-4:]
        assert Heads(Rules()).understand(longer) == meaning, "a harmless line decided something"
        if deciding_lines(longer) is not None:
            assert deciding_lines(longer) == lines


def fuzz(content: bytes) -> None:
    """Cut an input of libFuzzer into heads, as the listener does, and check them."""
    *heads, _ = content.split(b"\r\n\r\n")
    for head in heads[:3]:
        check(head + b"\r\n\r\n")
        check_token_file(head + b"\r\n\r\n")


if __name__ == "__main__":
    atheris.Setup(sys.argv, fuzz)
    atheris.Fuzz()
