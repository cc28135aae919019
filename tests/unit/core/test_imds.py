"""IMDS requests to values, values to response bytes."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podidentity.core import imds
from podidentity.core.identities import ObjectKey
from podidentity.core.imds import Forward, Head, HostTokenRequest, Refusal, Rules, Token, TokenRequest

TOKEN = b"/metadata/identity/oauth2/token"
METADATA = ((b"host", b"169.254.169.254"), (b"metadata", b"true"))


def parse(
    target: bytes, headers: tuple[tuple[bytes, bytes], ...] = METADATA, method: bytes = b"GET", **rules: bool
) -> imds.Parsed:
    """Parse a request with the usual headers."""
    return imds.parse(Head(method, target, headers), Rules(**rules))


def status(parsed: imds.Parsed) -> int:
    """The status of a refusal; 0 for everything else."""
    return parsed.status if isinstance(parsed, Refusal) else 0


@pytest.mark.parametrize(
    "path", [TOKEN, TOKEN + b"/", b"/METADATA/identity/oauth2/token", b"/Metadata/identity/oauth2/token/"]
)
def test_a_token_request_is_read(path: bytes) -> None:
    """With and without the slash; only the first segment in any case."""
    assert parse(path + b"?api-version=2018-02-01&resource=https%3A%2F%2Fvault.azure.net") == TokenRequest(
        "https://vault.azure.net"
    )


@pytest.mark.parametrize("spare", [0, -1])
def test_a_target_has_its_limit(spare: int) -> None:
    """What a request names is remembered in several places: its length is what bounds them all."""
    start = TOKEN + b"?resource="
    target = start + b"r" * (imds.TARGET_LIMIT_BYTES - len(start) - spare)
    assert status(parse(target)) == (414 if spare else 0)


@pytest.mark.parametrize(
    ("parameter", "field"),
    [
        ("client_id", "client_id"),
        ("object_id", "object_id"),
        ("msi_res_id", "resource_id"),
        ("mi_res_id", "resource_id"),
    ],
)
def test_each_selector_is_read(parameter: str, field: str) -> None:
    """SDKs use all four names."""
    asked = parse(TOKEN + f"?resource=r&{parameter}=x".encode())
    assert isinstance(asked, TokenRequest)
    assert getattr(asked, field) == "x"


def test_an_empty_selector_is_none() -> None:
    """Some clients send `client_id=` when they mean the default."""
    assert parse(TOKEN + b"?resource=r&client_id=") == TokenRequest("r")


HOSTILE = [
    b"/metadata/identity\\oauth2\\token/?resource=r",
    b"/metadata/identity/oauth2/token;x?resource=r",
    b"/metadata/identity/oauth2//token?resource=r",
    b"//metadata/identity/oauth2/token?resource=r",
    b"/metadata/./identity/oauth2/token?resource=r",
    b"/metadata/instance/../identity/oauth2/token?resource=r",
    b"/metadata/identity%2foauth2/token?resource=r",
    b"/metadata/identity/oauth2/tokenfoo?resource=r",
    b"/metadata/identity/oauth2/token/foo?resource=r",
    b"/metadata/Identity/oauth2/token?resource=r",
    b"/metadata/identity/OAuth2/token?resource=r",
    b"http://169.254.169.254/metadata/identity/oauth2/token?resource=r",
    b"*",
    b"",
    b"metadata/identity/oauth2/token?resource=r",
    b"/metadata/identity/oauth2/token\x00?resource=r",
    b"/metadata/identity/oauth2/tok\xc3\xa9n?resource=r",
    b"/metadata/identity/oauth2/token?resource=r&resource=s",
    b"/metadata/identity/oauth2/token?resource=r&client_id=a&client_id=b",
    b"/metadata/identity/oauth2/token?resource=r&client_id=a&object_id=b",
    b"/metadata/identity/oauth2/token?resource=r&msi_res_id=a&mi_res_id=b",
    b"/metadata/identity/oauth2/token?resource=%ff",
    b"/metadata/identity/oauth2/token?resource=a%0d%0ab",
    b"/metadata/identity/oauth2/token?resource",
    b"/metadata/identity/oauth2/token?resource=a#b",
    b"/metadata/identity/oauth2/token?resource=a b",
    b"/metadata/identity/oauth2/token?resource=",
    b"/metadata/identity/oauth2/token?",
    b"/metadata/identity/oauth2/token",
]


@pytest.mark.parametrize("target", HOSTILE)
def test_a_hostile_or_incomplete_token_request_is_a_bad_request(target: bytes) -> None:
    """Decided on the raw target: no decoding, no cleaning, no guess."""
    assert status(parse(target)) == 400


@pytest.mark.parametrize(
    "target",
    [
        b"/",
        b"/metadata",
        b"/metadata/identity/info",
        b"/token",
        b"/host/tokens",
        b"/metadata/Instance",
        b"/metadata/versions/x",
        b"/HOST/token",
    ],
)
def test_an_unknown_path_is_not_found(target: bytes) -> None:
    """Nothing that is not on the list is forwarded."""
    assert status(parse(target)) == 404


@pytest.mark.parametrize("method", [b"POST", b"HEAD", b"PUT", b"get", b"OPTIONS"])
def test_only_get_is_answered(method: bytes) -> None:
    """Upstream answered POST and HEAD as GET."""
    assert status(parse(TOKEN + b"?resource=r", method=method)) == 405


@pytest.mark.parametrize(
    "headers",
    [
        (),
        ((b"metadata", b"false"),),
        ((b"metadata", b"true"), (b"metadata", b"true")),
        ((b"metadata", b"true"), (b"x-forwarded-for", b"1.1.1.1")),
        ((b"metadata", b"true"), (b"transfer-encoding", b"chunked")),
        ((b"metadata", b"true"), (b"content-length", b"5")),
    ],
)
def test_headers_that_imds_refuses_are_refused(headers: tuple[tuple[bytes, bytes], ...]) -> None:
    """Exactly one `Metadata: true`, no proxy, no body."""
    assert status(parse(TOKEN + b"?resource=r", headers)) == 400


def test_a_probe_without_header_and_query_is_told_at_once() -> None:
    """SDKs ask so to see whether IMDS is there; the sentence is IMDS's."""
    assert parse(TOKEN, ()) == Refusal(400, "Required metadata header not specified")


def test_the_metadata_header_can_be_made_optional() -> None:
    """`--metadata-header-required=false`, but a wrong value stays wrong."""
    assert parse(TOKEN + b"?resource=r", (), metadata_header_required=False) == TokenRequest("r")
    wrong = parse(TOKEN + b"?resource=r", ((b"metadata", b"no"),), metadata_header_required=False)
    assert status(wrong) == 400


def test_instance_metadata_is_forwarded_rebuilt() -> None:
    """Known parameters in a fixed order, and never the client's own string."""
    assert parse(b"/METADATA/instance/compute/?format=json&api-version=2021-02-01") == Forward(
        "/metadata/instance/compute?api-version=2021-02-01&format=json"
    )
    assert parse(b"/metadata/versions") == Forward("/metadata/versions")


@pytest.mark.parametrize("query", [b"?x=1", b"?format=a%26b", b"?format=json&format=json"])
def test_what_is_not_known_is_not_forwarded(query: bytes) -> None:
    """A parameter that IMDS might read in its own way never gets there."""
    assert status(parse(b"/metadata/instance" + query)) == 400


def test_instance_metadata_can_be_blocked() -> None:
    """`--block-instance-metadata` answers 403, header or not; the rest of IMDS stays."""
    assert status(parse(b"/metadata/instance/compute", (), block_instance_metadata=True)) == 403
    assert isinstance(parse(b"/metadata/versions", block_instance_metadata=True), Forward)


def test_forwarded_paths_need_the_metadata_header() -> None:
    """As in IMDS."""
    assert status(parse(b"/metadata/instance", ())) == 400


def test_a_host_token_request_names_its_pod() -> None:
    """What the secrets-store CSI driver sends; no Metadata header."""
    headers = ((b"podname", b"web"), (b"podns", b"team-a"))
    assert parse(b"/host/token/?resource=r", headers) == HostTokenRequest(ObjectKey("team-a", "web"), TokenRequest("r"))
    assert status(parse(b"/host/token?resource=r", headers[:1])) == 400
    assert status(parse(b"/host/token", headers)) == 400


@given(st.binary(max_size=200), st.lists(st.tuples(st.binary(max_size=20), st.binary(max_size=20)), max_size=5))
def test_no_bytes_break_the_parser(target: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    """Whatever arrives, there is an answer."""
    assert imds.parse(Head(b"GET", target, tuple(headers)), Rules()) is not None


@given(st.text(alphabet="/metadaidentityoauth2tokn.;\\%2fFX?&=", max_size=60))
def test_only_the_two_token_paths_are_token_requests(path: str) -> None:
    """No other spelling ever becomes a token request."""
    target = f"/{path}".encode()
    if isinstance(parse(target), TokenRequest):
        assert target.split(b"?")[0].lower().removesuffix(b"/") == TOKEN


def response(raw: bytes) -> tuple[bytes, dict[str, str], object]:
    """Cut a response into status line, headers and body."""
    head, _, body = raw.partition(b"\r\n\r\n")
    first, *lines = head.split(b"\r\n")
    return first, dict(line.decode().split(": ", 1) for line in lines), json.loads(body)


def test_a_token_answer_has_seven_texts() -> None:
    """Go's SDK fails on numbers, Python's without `resource`: azure.md, section 3."""
    token = Token("secret", expires_on=2_000, not_before=900, resource="r")
    first, headers, body = response(imds.render_token(token, now=1_000.5))
    assert first == b"HTTP/1.1 200 OK"
    assert headers["Content-Type"] == "application/json"
    assert body == {
        "access_token": "secret",
        "refresh_token": "",
        "expires_in": "1000",
        "expires_on": "2000",
        "not_before": "900",
        "resource": "r",
        "token_type": "Bearer",
    }


def test_auxiliary_tenants_make_an_array() -> None:
    """Primary tenant first."""
    tokens = (Token("a", 2, 1, "r"), Token("b", 2, 1, "r"))
    _, headers, body = response(imds.render_tokens(tokens, now=1))
    assert isinstance(body, list)
    assert [one["access_token"] for one in body] == ["a", "b"]
    assert int(headers["Content-Length"]) == len(json.dumps(body))


def test_a_token_never_shows_in_a_repr() -> None:
    """Logs print values."""
    assert "secret" not in repr(Token("secret", 2, 1, "r"))


def test_an_error_is_json_as_in_imds() -> None:
    """SDKs lose plain text."""
    first, headers, body = response(imds.render_error(503, "come back", retry_after_seconds=20))
    assert first == b"HTTP/1.1 503 Service Unavailable"
    assert headers["Retry-After"] == "20"
    assert body == {"error": "invalid_request", "error_description": "come back"}
    assert response(imds.render_error(405, "x"))[1]["Allow"] == "GET"
    assert response(imds.render_error(418, "x"))[0] == b"HTTP/1.1 418 Unknown"
