"""The protocol of the token-file door: requests and answers."""

import json

import pytest

from podidentity.core.tokens.imds import Head, Refusal, Rules, Token, TokenFileRequest, TokenRequest, render_error
from podidentity.core.tokens.sources import ProvenIdentity
from podidentity.core.tokens.token_file import CHALLENGE, PROOF_LIMIT_BYTES, parse, render_token

CLIENT = "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee"
OTHER = "bbbbbbbb-bbbb-cccc-dddd-eeeeeeeeeeee"
TARGET = f"/token-file/{CLIENT}?api-version=2020-06-01&resource=r"
METADATA = (b"metadata", b"true")
PROOF = (b"authorization", b"Basic a.b.c")


def asked(target: str = TARGET, *headers: tuple[bytes, bytes]) -> object:
    """Return what a head with these headers beside `Metadata: true` comes to."""
    return parse(Head(b"GET", target.encode(), (METADATA, *headers)), Rules())


def status(target: str = TARGET, *headers: tuple[bytes, bytes]) -> int:
    """Return the status of a refusal."""
    refusal = asked(target, *headers)
    assert isinstance(refusal, Refusal)
    return refusal.status


def test_a_request_with_and_without_proof() -> None:
    """A request has the identity of its path, in any case, and the proof if there is one."""
    request = TokenRequest("r", CLIENT)
    assert asked() == TokenFileRequest(request)
    assert asked(TARGET, PROOF) == TokenFileRequest(request, proof="a.b.c")
    assert asked(TARGET.replace(CLIENT, CLIENT.upper()), (b"authorization", b"bASIC a.b.c")) == asked(TARGET, PROOF)


def test_a_selector_is_kept_as_it_came() -> None:
    """A client ID in the query is kept as written.

    It names the identity when the path does not, and may repeat it when the path does.
    """
    selector = ("client_id", CLIENT.upper())
    expectation = TokenFileRequest(TokenRequest("r", CLIENT), selector)
    assert asked(f"/token-file?resource=r&client_id={CLIENT.upper()}") == expectation
    assert asked(f"{TARGET}&client_id={CLIENT.upper()}") == expectation


@pytest.mark.parametrize(
    "query", [f"client_id={OTHER}", "client_id=x", "object_id=1", "msi_res_id=/s", "mi_res_id=/s", "resource=s", "a"]
)
def test_a_selector_that_says_something_else(query: str) -> None:
    """A query that names another identity than the path, or cannot be compared with it, is refused."""
    assert status(f"{TARGET}&{query}") == 400


@pytest.mark.parametrize(
    ("target", "expectation"),
    [
        ("/token-file?resource=r", 400),
        ("/token-file?resource=r&client_id=x", 400),
        (f"/token-file/{CLIENT}", 400),
        ("/token-file/x?resource=r", 404),
        ("/token-file/?resource=r", 404),
        ("/metadata/identity/oauth2/token?resource=r", 404),
        ("/token%2dfile?resource=r", 400),
        (TARGET + "x" * 2048, 414),
    ],
)
def test_other_targets(target: str, expectation: int) -> None:
    """Other targets are refused, with a proof and without."""
    assert status(target) == status(target, PROOF) == expectation


@pytest.mark.parametrize(
    "name", ["via", "forwarded", "x-real-ip", "x-forwarded-host", "x-forwarded-proto", "x-forwarded-for"]
)
def test_what_was_passed_on(name: str) -> None:
    """A request with a header of proxies is refused, whatever the header's value."""
    assert status(TARGET, PROOF, (name.encode(), b"")) == 400


def test_the_metadata_header_is_needed() -> None:
    """A request without the Metadata header is refused: a web page cannot make a browser send that header."""
    refusal = parse(Head(b"GET", TARGET.encode(), (PROOF,)), Rules())
    assert isinstance(refusal, Refusal)
    assert refusal.status == 400


@pytest.mark.parametrize(
    "value", ["a.b.c", "Bearer a.b.c", "Basic", "Basic a.b", "Basic a.b.c.d", "Basic  a.b.c", "Basic a.b.c="]
)
def test_a_proof_that_is_none(value: str) -> None:
    """A proof that is not a token in the form of Basic is answered with 401."""
    assert status(TARGET, (b"authorization", value.encode())) == 401


def test_a_proof_is_bounded_and_single() -> None:
    """A proof is bounded by the 4096 bytes that SDKs read from a file, and a second one is refused."""
    longest = b"Basic a.b." + b"c" * (PROOF_LIMIT_BYTES - 4)
    assert isinstance(asked(TARGET, (b"authorization", longest)), TokenFileRequest)
    assert status(TARGET, (b"authorization", longest + b"c")) == 401
    assert status(TARGET, PROOF, PROOF) == 401


def test_the_answer_has_the_selector() -> None:
    """The answer repeats the client ID under the name by which the client asked; without one it has none."""
    token = Token("t", 1000, 0, "r")
    body = json.loads(render_token(token, ("client_id", CLIENT), 10.0).partition(b"\r\n\r\n")[2])
    assert (body["access_token"], body["expires_in"], body["client_id"]) == ("t", "990", CLIENT)
    assert b"client_id" not in render_token(token, ("", ""), 10.0)


def test_no_proof_shows() -> None:
    """The proof appears neither in the repr of a request nor in that of a source, since both may be logged."""
    assert "a.b.c" not in repr(asked(TARGET, PROOF)) + repr(ProvenIdentity(CLIENT, "n", "a.b.c"))


def test_the_challenge_is_what_sdks_cut_at_the_equals_sign() -> None:
    """SDKs split the challenge at the equals sign and accept a file in this directory only."""
    assert CHALLENGE.split("=") == ["Basic realm", "/var/opt/azcmagent/tokens/podidentity.key"]
    assert f"\r\nWWW-Authenticate: {CHALLENGE}\r\n".encode() in render_error(401, "", challenge=CHALLENGE)
