"""What requests to the token proxy ask for, and which are refused."""

import sys
from urllib.parse import urlencode

import pytest

from podidentity.core.exchange.requests import (
    BODY_LIMIT_BYTES,
    CAPABILITIES,
    FORM,
    NODE_PATH,
    TOKEN_FILE_PATH,
    ConfigurationRequest,
    InstanceRequest,
    PodReference,
    PodTokenRequest,
    Refusal,
    TokenRequest,
    parse,
)
from podidentity.core.model.http_request import HttpRequest

TENANT = "11111111-2222-3333-4444-555555555555"
CLIENT = "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee"
PATH = f"/{TENANT}/oauth2/v2.0/token"
JWT = "aGVhZA.Ym9keQ.c2ln"
FIELDS = {
    "client_id": CLIENT,
    "client_assertion": JWT,
    "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
    "grant_type": "client_credentials",
    "scope": "https://vault.azure.net/.default",
}
TOKEN_REQUEST = TokenRequest(CLIENT, "https://vault.azure.net/.default", JWT)


def form(**changes: str) -> bytes:
    """Return the body of a good request, with some fields changed."""
    return urlencode(FIELDS | changes).encode()


def post(body: bytes, path: str = PATH, query: str = "", content_type: str = FORM) -> object:
    """Return the request that a POST makes, or its refusal."""
    return parse(HttpRequest("POST", path, query, content_type, body), TENANT)


@pytest.mark.parametrize(
    "path", [PATH, PATH.upper().replace("OAUTH2/V2.0/TOKEN", "oauth2/v2.0/token"), "/", TOKEN_FILE_PATH]
)
@pytest.mark.parametrize("content_type", [FORM, f"{FORM}; charset=utf-8", FORM.title()])
def test_a_token_is_asked_for(path: str, content_type: str) -> None:
    """A request comes by Entra ID's path with the tenant's ID in any case, by `/`, or by NMI's own path."""
    assert post(form(), path, content_type=content_type) == TOKEN_REQUEST


def test_a_form_in_the_query_of_the_root_counts() -> None:
    """With the path `/` the form may be in the query: one client sends it there, without a body."""
    assert post(b"", "/", form().decode(), "") == TOKEN_REQUEST


def test_the_query_of_the_long_path_does_not_count() -> None:
    """With Entra ID's path the query is ignored: JavaScript's SDK puts a request ID there."""
    assert post(form(), query="client-request-id=1&client_id=other") == TOKEN_REQUEST


def test_a_client_id_in_upper_case_is_the_same() -> None:
    """Client IDs are GUIDs, which compare without case."""
    assert post(form(client_id=CLIENT.upper())) == TOKEN_REQUEST


@pytest.mark.parametrize("scope", ["openid offline_access profile {}", "{} openid", " {} "])
def test_scopes_that_mean_nothing_are_ignored(scope: str) -> None:
    """OpenID's scopes beside the resource, which MSAL for Go and Java adds, are ignored."""
    assert post(form(scope=scope.format(FIELDS["scope"]))) == TOKEN_REQUEST


@pytest.mark.parametrize(
    "scope",
    [
        "",
        "/.default",
        "https://vault.azure.net",
        "https://vault.azure.net/.default https://storage.azure.com/.default",
        "openid",
        "https://" + "a" * 600 + "/.default",
        "https://a\u200b/.default",
    ],
)
def test_a_scope_is_one_resource(scope: str) -> None:
    """Anything but one resource is refused with 400 and invalid_scope."""
    refusal = post(form(scope=scope))
    assert isinstance(refusal, Refusal)
    assert (refusal.status, refusal.code) == (400, "invalid_scope")


@pytest.mark.parametrize(
    "claims",
    [
        '{ "access_token": {"xms_cc": {"values": ["CP1"]} } }',
        '{"id_token":{"login_hint":{"essential":false}},"access_token":{"xms_cc":{"values":["cp1"]}}}',
    ],
)
def test_a_clients_capabilities_are_no_challenge(claims: str) -> None:
    """Claims that only state a client's capabilities are no challenge.

    A client that understands challenges sends them with every request, spelled in several ways.
    """
    assert post(form(claims=claims)) == TOKEN_REQUEST._replace(claims=CAPABILITIES)


@pytest.mark.parametrize(
    "claims",
    [
        '{"access_token":{"nbf":{"essential":true,"value":"1700000000"}}}',
        '{"access_token":{"xms_cc":{"values":["CP2"]}}}',
        '{"access_token":{"xms_cc":{"values":["CP1"]}},"id_token":{"acr":{"essential":true}}}',
        '{"access_token":{"xms_cc":{"values":["CP1"]}},"id_token":"no"}',
    ],
)
def test_other_claims_are_a_challenge(claims: str) -> None:
    """Any other claims answer a challenge, and are passed on as they are."""
    assert post(form(claims=claims)) == TOKEN_REQUEST._replace(claims=claims, challenge=True)


@pytest.mark.parametrize("claims", ["no", "[1]", "[" * 2000, '{"a":"' + "b" * 5000 + '"}'])
def test_claims_are_a_short_json_object(claims: str) -> None:
    """Claims that are no JSON object, or too long, are refused with 400."""
    refusal = post(form(claims=claims))
    assert isinstance(refusal, Refusal)
    assert (refusal.status, refusal.code) == (400, "invalid_request")


def test_claims_that_are_nested_as_deep_as_can_be_read() -> None:
    """Claims of any depth are accepted, or refused with 400, and never an internal error.

    Claims that can just be read cannot be written again. Since Python 3.12 reading has a limit of its own, which is
    deeper than claims can be.
    """
    limit = sys.getrecursionlimit()
    answers = [post(form(claims='{"a":' + "[" * depth + "]" * depth + "}")) for depth in range(limit - 400, limit + 10)]
    assert {getattr(answer, "status", 200) for answer in answers} - {400} == {200}


@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        ({"grant_type": "password"}, 400, "unsupported_grant_type"),
        ({"grant_type": ""}, 400, "unsupported_grant_type"),
        ({"client_assertion_type": "other"}, 400, "invalid_request"),
        ({"client_id": "me"}, 400, "invalid_request"),
        ({"client_id": ""}, 400, "invalid_request"),
        ({"client_id": CLIENT + "\n"}, 400, "invalid_request"),
        ({"client_assertion": ""}, 401, "invalid_client"),
        ({"client_assertion": "a.b"}, 401, "invalid_client"),
        ({"client_assertion": "a.b.c\n"}, 401, "invalid_client"),
        ({"client_assertion": "a.b." + "c" * 16 * 1024}, 401, "invalid_client"),
    ],
)
def test_fields_that_are_wrong(changes: dict[str, str], status: int, code: str) -> None:
    """Each wrong field is refused with its status and OAuth's error code."""
    refusal = post(form(**changes))
    assert isinstance(refusal, Refusal)
    assert (refusal.status, refusal.code) == (status, code)


@pytest.mark.parametrize(
    "body",
    [
        form() + b"&client_assertion=a.b.c",
        form() + b"&scope=x",
        form() + b"&" + b"&".join(b"x=1" for _ in range(64)),
        b"not a form",
        form(client_id="\xff").replace(b"%C3%BF", b"%FF"),
        b"\xff=1",
        b"",
    ],
    ids=["assertion twice", "scope twice", "many fields", "no form", "no UTF-8", "no ASCII", "nothing"],
)
def test_forms_that_are_none(body: bytes) -> None:
    """A form that two parsers could read differently is refused with 400."""
    refusal = post(body)
    assert isinstance(refusal, Refusal)
    assert refusal.status == 400


def test_a_form_twice_is_none() -> None:
    """A form in the body together with one in the query is refused."""
    refusal = post(form(), "/", form().decode())
    assert isinstance(refusal, Refusal)
    assert refusal.status == 400


def test_another_content_type_is_no_form() -> None:
    """Only a form's own content type is accepted: any web page can make a browser send text/plain."""
    refusal = post(form(), content_type="text/plain")
    assert isinstance(refusal, Refusal)
    assert refusal.status == 400


def test_a_long_body_is_refused() -> None:
    """The answer is 413."""
    refusal = post(form() + b"&x=" + b"y" * BODY_LIMIT_BYTES)
    assert isinstance(refusal, Refusal)
    assert refusal.status == 413


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", PATH, "POST"),
        ("GET", "/", "POST"),
        ("PUT", PATH, "POST"),
        ("POST", f"/{TENANT}/v2.0/.well-known/openid-configuration", "GET"),
        ("POST", "/common/discovery/instance", "GET"),
    ],
)
def test_each_path_has_its_method(method: str, path: str, allow: str) -> None:
    """Another method is refused with 405, which names the method to use."""
    refusal = parse(HttpRequest(method, path), TENANT)
    assert isinstance(refusal, Refusal)
    assert (refusal.status, refusal.allow) == (405, allow)


@pytest.mark.parametrize("path", ["/other/oauth2/v2.0/token", "/other/v2.0/.well-known/openid-configuration"])
def test_another_tenant_is_refused(path: str) -> None:
    """The path's tenant must be that of the identities; another one is refused with 400."""
    refusal = parse(HttpRequest("POST" if path.endswith("token") else "GET", path, "", FORM, form()), TENANT)
    assert isinstance(refusal, Refusal)
    assert refusal.status == 400
    assert TENANT in refusal.message


def test_discovery() -> None:
    """Both discovery documents are requested with GET."""
    configuration = HttpRequest("GET", f"/{TENANT}/v2.0/.well-known/openid-configuration")
    assert parse(configuration, TENANT) == ConfigurationRequest()
    instance = HttpRequest("GET", "/common/discovery/instance", "api-version=1.1")
    assert parse(instance, TENANT) == InstanceRequest()


@pytest.mark.parametrize(
    "path",
    [
        "/metadata/identity/oauth2/token",
        f"/{TENANT}/oauth2/token",
        f"{PATH}/",
        f"/x{PATH}",
        f"/{TENANT}%2Foauth2/v2.0/token",
    ],
)
def test_there_is_nothing_else(path: str) -> None:
    """Every other path is 404."""
    refusal = parse(HttpRequest("POST", path, "", FORM, form()), TENANT)
    assert isinstance(refusal, Refusal)
    assert refusal.status == 404


def test_no_assertion_is_shown() -> None:
    """The repr of a request leaves out the client's assertion, since requests may be logged."""
    assert JWT not in repr(TOKEN_REQUEST)


POD_FIELDS = {"pod_namespace": "shop", "pod_name": "cart-0", "pod_uid": "00000000-aaaa"}


def test_nmi_asks_in_a_pods_name() -> None:
    """A token request of NMI's names the pod for which it asks."""
    assert post(form(**POD_FIELDS), NODE_PATH) == PodTokenRequest(
        TOKEN_REQUEST, PodReference("shop", "cart-0", "00000000-aaaa")
    )


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"pod_namespace": ""}, 400),
        ({"pod_name": "../x"}, 400),
        ({"pod_name": "UPPER"}, 400),
        ({"pod_uid": "a/b"}, 400),
        ({"scope": "x"}, 400),
        ({"client_assertion": "x"}, 401),
    ],
)
def test_a_pod_must_be_named(changes: dict[str, str], status: int) -> None:
    """The pod's names must be valid ones, since they become part of a URL's path."""
    refusal = post(form(**POD_FIELDS | changes), NODE_PATH)
    assert isinstance(refusal, Refusal)
    assert refusal.status == status


def test_a_pod_is_named_once() -> None:
    """A pod that is named twice is refused, since two parsers could take different ones."""
    refusal = post(form(**POD_FIELDS) + b"&pod_name=other", NODE_PATH)
    assert isinstance(refusal, Refusal)
    assert refusal.status == 400


def test_the_pods_fields_mean_nothing_elsewhere() -> None:
    """By the other paths the fields of a pod are ignored: a pod that asks itself is the one in its token."""
    assert post(form(**POD_FIELDS)) == TOKEN_REQUEST
