"""Coverage-guided fuzzing of the way from bytes to a request: `python tests/fuzz/heads.py -max_total_time=30 CORPUS`.

atheris (libFuzzer) makes up heads, guided by the branches they reach in `core.imds` and `nmi.heads`. What must hold for
each is `check`; the suite also runs it on every seed and every hostile request.
"""

import importlib
import re
import sys
from pathlib import Path

if __name__ == "__main__":
    import atheris

    sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "src")]
    with atheris.instrument_imports(include=["podidentity.core.imds", "podidentity.nmi.heads"]):
        importlib.import_module("podidentity.nmi.heads")

from fuzz import naive
from podidentity.core.imds import Forward, HostTokenRequest, Refusal, Rules, TokenRequest
from podidentity.nmi.heads import Heads, essence_of, without_request_id

FORWARDED = re.compile(
    r"/metadata/(?:instance(?:/[A-Za-z0-9._~-]+)*|versions|attested/document|loadbalancer|scheduledevents)"
    r"(?:\?(?:(?:api-version|format|nonce|extended)=[A-Za-z0-9._:%/=-]*&?)*)?"
)
REQUEST_ID = b"\r\nx-ms-client-request-id: "
HARMLESS = b"\r\nX-Request-Id: 8c9e4d62-0000-4b0e-9d52-3f7a5d0f9f11"

_long_lived = Heads(Rules())


def check(head: bytes) -> None:
    """Hold one head against everything that must be true of it."""
    understood = Heads(Rules()).understand(head)
    assert _long_lived.understand(head) == understood, "what was understood before changed the answer"
    assert _long_lived.understand(head) == understood, "the memory changed the answer"
    parsed = understood.parsed
    if isinstance(parsed, Forward):
        assert FORWARDED.fullmatch(parsed.target), parsed
        assert not any(segment in {".", ".."} for segment in parsed.target.partition("?")[0].split("/")), parsed
    if isinstance(parsed, HostTokenRequest):
        assert re.match(rb"GET /host/token/?\?", head), head
    expected = naive.token_asked(head)
    got = None
    if isinstance(parsed, TokenRequest):
        got = parsed.resource, parsed.client_id, parsed.resource_id, parsed.object_id
        assert got == expected, f"{got} was understood, {expected} was asked"
    elif expected is not None and naive.is_judged_exactly(head):
        raise AssertionError(f"refused without need: {parsed}")
    if isinstance(parsed, Refusal):
        assert 400 <= parsed.status < 500, parsed
    _check_memory(head)


def _check_memory(head: bytes) -> None:
    """Lines that decide nothing decide nothing: neither one more of them nor none at all."""
    essence = essence_of(head)
    if essence is None:
        return
    understood = Heads(Rules()).understand(head)
    if without_request_id(head) is not None:
        at = head.index(REQUEST_ID) + len(REQUEST_ID)
        other = head[:at] + b"0" + head[at:]
        assert Heads(Rules()).understand(other) == understood, "the request ID decided something"
    assert Heads(Rules()).understand(essence + b"\r\n\r\n") == understood, "a line that was left out decided something"
    if head.count(b"\r\n") < 60:
        longer = head[:-4] + HARMLESS + head[-4:]
        assert Heads(Rules()).understand(longer) == understood, "a harmless line decided something"
        if essence_of(longer) is not None:
            assert essence_of(longer) == essence


def fuzz(given: bytes) -> None:
    """Cut what libFuzzer made up into heads, as the listener does."""
    *heads, _ = given.split(b"\r\n\r\n")
    for head in heads[:3]:
        check(head + b"\r\n\r\n")


if __name__ == "__main__":
    atheris.Setup(sys.argv, fuzz)
    atheris.Fuzz()
