"""IMDS requests to values, values to response bytes."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podidentity.core.model.identities import ObjectKey
from podidentity.core.tokens import imds
from podidentity.core.tokens.imds import Forward, Head, HostTokenRequest, Refusal, Rules, Token, TokenRequest

TOKEN = b"/metadata/identity/oauth2/token"
METADATA = ((b"host", b"169.254.169.254"), (b"metadata", b"true"))


def parse(
    target: bytes, headers: tuple[tuple[bytes, bytes], ...] = METADATA, method: bytes = b"GET", **rules: bool
) -> imds.ParsedRequest:
    """Parse a request with the usual headers."""
    return imds.parse(Head(method, target, headers), Rules(**rules))


def status(outcome: imds.ParsedRequest) -> int:
    """Return the status of a refusal; 0 for everything else."""
    return outcome.status if isinstance(outcome, Refusal) else 0


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


@pytest.mark.parametrize("target", [b"/", b"/metadata/xyz", b"/metadata/identity/info"])
def test_the_metadata_header_comes_before_the_path(target: bytes) -> None:
    """A path that is not known is told of only to those who send the header, in upstream's words to all others."""
    assert parse(target, ()) == Refusal(400, "Required metadata header not specified")
    assert status(parse(target)) == status(parse(target, (), metadata_header_required=False)) == 404


@pytest.mark.parametrize("target", [b"/metadata/identity/oauth2/tokens", b"/metadata/identity/OAuth2/token/x"])
def test_a_misspelt_token_path_is_told_the_right_one(target: bytes) -> None:
    """With the header or without it: who writes it so wants a token."""
    for headers in (METADATA, ()):
        refusal = parse(target + b"?resource=r", headers)
        assert refusal == Refusal(400, f"this is not the path of a token request; ask {TOKEN.decode()}")


def test_each_unknown_path_has_its_sentence() -> None:
    """A field of the instance that IMDS may know is to be had with all others; anything else is nowhere."""
    fields = "no such field of instance metadata; ask /metadata/instance and read it there"
    assert parse(b"/metadata/instance/compute/identity") == Refusal(404, fields)
    for target in (b"/metadata/identity", b"/metadata/attested", b"/metadata/instances", b"/zzz"):
        assert parse(target) == Refusal(404, "no such metadata path")


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


@pytest.mark.parametrize(
    "query",
    [
        b"?resource=r&client_id=&client_id=b",
        b"?resource=r&client_id=a&client_id=",
        b"?resource=r&x=1&x=2",
        b"?resource=r&=x",
        b"?resource=r&a%00b=x",
        b"?resource=r&client_id=a%7f",
        b"?resource=r&&client_id=a",
        b"?resource=r&client_id=%C3",
    ],
)
def test_a_query_that_two_parsers_might_read_differently_is_refused(query: bytes) -> None:
    """Whichever of two values a proxy or IMDS takes: here there is one, or no answer."""
    assert status(parse(TOKEN + query)) == 400


def test_an_empty_body_may_be_announced() -> None:
    """Some clients send `Content-Length: 0` with each request."""
    assert parse(TOKEN + b"?resource=r", (*METADATA, (b"content-length", b"0"))) == TokenRequest("r")


@pytest.mark.parametrize("path", ["versions", "attested/document", "loadbalancer", "scheduledevents"])
def test_the_rest_of_imds_is_passed_on(path: str) -> None:
    """What says nothing of an identity, with the parameters that IMDS documents for it."""
    assert parse(f"/metadata/{path}?nonce=12&api-version=2021-02-01&extended=true".encode()) == Forward(
        f"/metadata/{path}?api-version=2021-02-01&extended=true&nonce=12"
    )
    assert parse(f"/metadata/{path}/".encode()) == Forward(f"/metadata/{path}")


def test_a_forwarded_value_means_the_same_at_imds() -> None:
    """A plus sign stays one, and what would need an escape is not passed on; an empty query is no parameter."""
    assert parse(b"/metadata/versions?nonce=a%2Bb") == Forward("/metadata/versions?nonce=a%2Bb")
    for query in (b"?nonce=a+b", b"?nonce=a%20b", b"?nonce=%26format=x", b"?nonce=%C3%A9", b"?"):
        assert status(parse(b"/metadata/versions" + query)) == (0 if query == b"?" else 400)


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


@pytest.mark.parametrize(
    "field",
    [
        "",
        "/",
        "/compute",
        "/network/",
        "/compute/vmId",
        "/compute/tagsList/3/value",
        "/compute/storageProfile/dataDisks/0/managedDisk/id",
        "/network/interface/0/ipv4/ipAddress/0/privateIpAddress",
    ],
)
def test_documented_fields_are_passed_on(field: str) -> None:
    """Each alone, as scripts on virtual machines ask them."""
    assert parse(b"/metadata/instance" + field.encode()) == Forward("/metadata/instance" + field.removesuffix("/"))


@pytest.mark.parametrize(
    "field",
    [
        "/co/metadata/Identity/oauth2/token",
        "/metadata/identity/oauth2/token",
        "/compute/metadata/identity/oauth2/token",
        "/compute/identity",
        "/vmId",
        "/compute/tagsList/1234",
        "/compute" + "/name" * 8,
    ],
)
def test_no_other_word_below_instance_is_passed_on(field: str) -> None:
    """What IMDS might take for another path one day never reaches it; nor does it where all of it is blocked."""
    target = b"/metadata/instance" + field.encode()
    assert status(parse(target)) == 404
    assert status(parse(target, block_instance_metadata=True)) == 403


def test_instance_metadata_can_be_blocked() -> None:
    """`--block-instance-metadata` answers 403, header or not; the rest of IMDS stays."""
    assert status(parse(b"/metadata/instance/compute", (), block_instance_metadata=True)) == 403
    assert isinstance(parse(b"/metadata/versions", block_instance_metadata=True), Forward)


def test_forwarded_paths_need_the_metadata_header() -> None:
    """IMDS itself requires it."""
    assert status(parse(b"/metadata/instance", ())) == 400


def test_a_host_token_request_names_its_pod() -> None:
    """What the secrets-store CSI driver sends; no Metadata header."""
    headers = ((b"podname", b"web"), (b"podns", b"team-a"))
    assert parse(b"/host/token/?resource=r", headers) == HostTokenRequest(ObjectKey("team-a", "web"), TokenRequest("r"))
    assert status(parse(b"/host/token?resource=r", headers[:1])) == 400
    assert status(parse(b"/host/token?resource=r", headers[1:])) == 400
    assert status(parse(b"/host/token?resource=r", ((b"podname", b""), headers[1]))) == 400
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


def test_a_token_that_has_ended_has_no_time_left() -> None:
    """Never less than none: clients compute with it."""
    for now, seconds in ((1_999.9, "1"), (2_000, "0"), (2_500, "0")):
        body = response(imds.render_token(Token("secret", 2_000, 900, "r"), now))[2]
        assert isinstance(body, dict)
        assert body["expires_in"] == seconds


def test_auxiliary_tenants_make_an_array() -> None:
    """The primary tenant's token is the first."""
    tokens = (Token("a", 2, 1, "r"), Token("b", 2, 1, "r"))
    first, headers, body = response(imds.render_tokens(tokens, now=1))
    assert first == b"HTTP/1.1 200 OK"
    assert isinstance(body, list)
    assert [item["access_token"] for item in body] == ["a", "b"]
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


@pytest.mark.parametrize(
    ("status_code", "reason", "error"),
    [
        (400, "Bad Request", "invalid_request"),
        (403, "Forbidden", "forbidden"),
        (404, "Not Found", "not_found"),
        (405, "Method Not Allowed", "method_not_allowed"),
        (408, "Request Timeout", "invalid_request"),
        (413, "Content Too Large", "invalid_request"),
        (414, "URI Too Long", "invalid_request"),
        (429, "Too Many Requests", "too_many_requests"),
        (431, "Request Header Fields Too Large", "invalid_request"),
        (500, "Internal Server Error", "server_error"),
        (503, "Service Unavailable", "invalid_request"),
    ],
)
def test_a_status_has_its_registered_reason_and_imds_error(status_code: int, reason: str, error: str) -> None:
    """RFC 9110, section 15, and RFC 6585; SDKs put the error's code into their exceptions."""
    first, headers, body = response(imds.render_error(status_code, "why"))
    assert first.decode() == f"HTTP/1.1 {status_code} {reason}"
    assert body == {"error": error, "error_description": "why"}
    assert "Retry-After" not in headers
    assert ("Allow" in headers) == (status_code == 405)
    assert "WWW-Authenticate" not in headers
