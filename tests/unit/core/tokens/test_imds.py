"""Requests to IMDS are parsed to values, and values are rendered to the bytes of answers."""

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
    """A slash at the end is allowed, and the first segment compares without case."""
    assert parse(path + b"?api-version=2018-02-01&resource=https%3A%2F%2Fvault.azure.net") == TokenRequest(
        "https://vault.azure.net"
    )


@pytest.mark.parametrize("spare", [0, -1])
def test_a_target_has_its_limit(spare: int) -> None:
    """A target over the limit is refused with 414: texts of requests are remembered in several places."""
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
    """SDKs use all four parameters that name an identity."""
    asked = parse(TOKEN + f"?resource=r&{parameter}=x".encode())
    assert isinstance(asked, TokenRequest)
    assert getattr(asked, field) == "x"


def test_an_empty_selector_is_none() -> None:
    """An empty `client_id=` names no identity: some clients send it for the default one."""
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
    """The raw target is judged: nothing in it is decoded, normalized or guessed."""
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
    """Only listed paths are answered or forwarded."""
    assert status(parse(target)) == 404


@pytest.mark.parametrize("target", [b"/", b"/metadata/xyz", b"/metadata/identity/info"])
def test_the_metadata_header_comes_before_the_path(target: bytes) -> None:
    """Without the header the answer is upstream's sentence about it, whatever the path.

    With it, an unknown path is 404.
    """
    assert parse(target, ()) == Refusal(400, "Required metadata header not specified")
    assert status(parse(target)) == status(parse(target, (), metadata_header_required=False)) == 404


@pytest.mark.parametrize("target", [b"/metadata/identity/oauth2/tokens", b"/metadata/identity/OAuth2/token/x"])
def test_a_misspelt_token_path_is_told_the_right_one(target: bytes) -> None:
    """The answer names the token path, with the header or without: the client wants a token."""
    for headers in (METADATA, ()):
        refusal = parse(target + b"?resource=r", headers)
        assert refusal == Refusal(400, f"this is not the path of a token request; ask {TOKEN.decode()}")


def test_each_unknown_path_has_its_sentence() -> None:
    """For an unknown field of the instance the answer names /metadata/instance; any other path is unknown."""
    fields = "no such field of instance metadata; ask /metadata/instance and read it there"
    assert parse(b"/metadata/instance/compute/identity") == Refusal(404, fields)
    for target in (b"/metadata/identity", b"/metadata/attested", b"/metadata/instances", b"/zzz"):
        assert parse(target) == Refusal(404, "no such metadata path")


@pytest.mark.parametrize("method", [b"POST", b"HEAD", b"PUT", b"get", b"OPTIONS"])
def test_only_get_is_answered(method: bytes) -> None:
    """Other methods are refused with 405; upstream answered POST and HEAD like GET."""
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
    """A request has exactly one `Metadata: true`, no header of proxies, and no body."""
    assert status(parse(TOKEN + b"?resource=r", headers)) == 400


def test_a_probe_without_header_and_query_is_told_at_once() -> None:
    """SDKs send such a request to see whether IMDS is there; the answer is IMDS's sentence."""
    assert parse(TOKEN, ()) == Refusal(400, "Required metadata header not specified")


def test_the_metadata_header_can_be_made_optional() -> None:
    """With `--metadata-header-required=false` the header may be missing; a wrong value is still refused."""
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
    """A parameter that is repeated or malformed is refused: IMDS or a proxy might read another value than NMI."""
    assert status(parse(TOKEN + query)) == 400


def test_an_empty_body_may_be_announced() -> None:
    """Some clients send `Content-Length: 0` with each request."""
    assert parse(TOKEN + b"?resource=r", (*METADATA, (b"content-length", b"0"))) == TokenRequest("r")


@pytest.mark.parametrize("path", ["versions", "attested/document", "loadbalancer", "scheduledevents"])
def test_the_rest_of_imds_is_passed_on(path: str) -> None:
    """Documents that say nothing of an identity are forwarded, with the parameters that IMDS documents."""
    assert parse(f"/metadata/{path}?nonce=12&api-version=2021-02-01&extended=true".encode()) == Forward(
        f"/metadata/{path}?api-version=2021-02-01&extended=true&nonce=12"
    )
    assert parse(f"/metadata/{path}/".encode()) == Forward(f"/metadata/{path}")


def test_a_forwarded_value_means_the_same_at_imds() -> None:
    """An escaped plus sign stays escaped; a value with any other character to escape is refused."""
    assert parse(b"/metadata/versions?nonce=a%2Bb") == Forward("/metadata/versions?nonce=a%2Bb")
    for query in (b"?nonce=a+b", b"?nonce=a%20b", b"?nonce=%26format=x", b"?nonce=%C3%A9", b"?"):
        assert status(parse(b"/metadata/versions" + query)) == (0 if query == b"?" else 400)


def test_instance_metadata_is_forwarded_rebuilt() -> None:
    """The forwarded request has the known parameters in a fixed order, never the client's own string."""
    assert parse(b"/METADATA/instance/compute/?format=json&api-version=2021-02-01") == Forward(
        "/metadata/instance/compute?api-version=2021-02-01&format=json"
    )
    assert parse(b"/metadata/versions") == Forward("/metadata/versions")


@pytest.mark.parametrize("query", [b"?x=1", b"?format=a%26b", b"?format=json&format=json"])
def test_what_is_not_known_is_not_forwarded(query: bytes) -> None:
    """A parameter that IMDS might read in another way than NMI is refused."""
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
    """Single fields are forwarded, as scripts on virtual machines request them."""
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
    """A path that IMDS might one day take for another one is not forwarded.

    It is unknown also when instance metadata is blocked.
    """
    target = b"/metadata/instance" + field.encode()
    assert status(parse(target)) == 404
    assert status(parse(target, block_instance_metadata=True)) == 403


def test_instance_metadata_can_be_blocked() -> None:
    """With `--block-instance-metadata` the answer is 403, with the header or without; other documents are forwarded."""
    assert status(parse(b"/metadata/instance/compute", (), block_instance_metadata=True)) == 403
    assert isinstance(parse(b"/metadata/versions", block_instance_metadata=True), Forward)


def test_forwarded_paths_need_the_metadata_header() -> None:
    """Forwarded requests need the Metadata header, since IMDS requires it."""
    assert status(parse(b"/metadata/instance", ())) == 400


def test_a_host_token_request_names_its_pod() -> None:
    """The secrets-store CSI driver names a pod in headers, and sends no Metadata header."""
    headers = ((b"podname", b"web"), (b"podns", b"team-a"))
    assert parse(b"/host/token/?resource=r", headers) == HostTokenRequest(ObjectKey("team-a", "web"), TokenRequest("r"))
    assert status(parse(b"/host/token?resource=r", headers[:1])) == 400
    assert status(parse(b"/host/token?resource=r", headers[1:])) == 400
    assert status(parse(b"/host/token?resource=r", ((b"podname", b""), headers[1]))) == 400
    assert status(parse(b"/host/token", headers)) == 400


@given(st.binary(max_size=200), st.lists(st.tuples(st.binary(max_size=20), st.binary(max_size=20)), max_size=5))
def test_no_bytes_break_the_parser(target: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    """Whatever bytes arrive, there is an answer."""
    assert imds.parse(Head(b"GET", target, tuple(headers)), Rules()) is not None


@given(st.text(alphabet="/metadaidentityoauth2tokn.;\\%2fFX?&=", max_size=60))
def test_only_the_two_token_paths_are_token_requests(path: str) -> None:
    """No other spelling of the path is a token request."""
    target = f"/{path}".encode()
    if isinstance(parse(target), TokenRequest):
        assert target.split(b"?")[0].lower().removesuffix(b"/") == TOKEN


def response(raw: bytes) -> tuple[bytes, dict[str, str], object]:
    """Split a response into status line, headers and body."""
    head, _, body = raw.partition(b"\r\n\r\n")
    first, *lines = head.split(b"\r\n")
    return first, dict(line.decode().split(": ", 1) for line in lines), json.loads(body)


def test_a_token_answer_has_seven_texts() -> None:
    """All seven fields are texts: Go's SDK fails on numbers, and Python's without `resource`."""
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
    """The lifetime of an expired token is 0, not negative: clients calculate with it."""
    for now, seconds in ((1_999.9, "1"), (2_000, "0"), (2_500, "0")):
        body = response(imds.render_token(Token("secret", 2_000, 900, "r"), now))[2]
        assert isinstance(body, dict)
        assert body["expires_in"] == seconds


def test_auxiliary_tenants_make_an_array() -> None:
    """With auxiliary tenants the answer is an array whose first token is the primary tenant's."""
    tokens = (Token("a", 2, 1, "r"), Token("b", 2, 1, "r"))
    first, headers, body = response(imds.render_tokens(tokens, now=1))
    assert first == b"HTTP/1.1 200 OK"
    assert isinstance(body, list)
    assert [item["access_token"] for item in body] == ["a", "b"]
    assert int(headers["Content-Length"]) == len(json.dumps(body))


def test_a_token_never_shows_in_a_repr() -> None:
    """Logs print the repr of values, so a token's repr leaves out its text."""
    assert "secret" not in repr(Token("secret", 2, 1, "r"))


def test_an_error_is_json_as_in_imds() -> None:
    """Errors are JSON: SDKs do not show plain text."""
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
    """Each status has the reason of RFC 9110, section 15, or RFC 6585, and IMDS's error code, which SDKs show."""
    first, headers, body = response(imds.render_error(status_code, "why"))
    assert first.decode() == f"HTTP/1.1 {status_code} {reason}"
    assert body == {"error": error, "error_description": "why"}
    assert "Retry-After" not in headers
    assert ("Allow" in headers) == (status_code == 405)
    assert "WWW-Authenticate" not in headers
