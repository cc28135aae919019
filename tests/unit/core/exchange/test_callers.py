"""Who sent a request to the token proxy, and which identities they may use."""

import json
from base64 import urlsafe_b64encode
from typing import Any

import pytest

from podidentity.core.exchange import grants
from podidentity.core.exchange.callers import AUDIENCE, Caller, caller_of, credential_of, refuse_early
from podidentity.core.exchange.requests import Refusal

NOW = 1_800_000_000.0
CLIENT = "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee"
CLAIMS = {"iss": "https://cluster", "aud": [AUDIENCE], "exp": NOW + 1, "sub": "system:serviceaccount:shop:cart"}
STATUS: dict[str, Any] = {
    "authenticated": True,
    "audiences": [AUDIENCE],
    "user": {
        "username": "system:serviceaccount:shop:cart",
        "uid": "sa-uid",
        "groups": ["system:serviceaccounts", "system:serviceaccounts:shop", "system:authenticated"],
        "extra": {
            "authentication.kubernetes.io/pod-name": ["cart-0"],
            "authentication.kubernetes.io/pod-uid": ["pod-uid"],
            "authentication.kubernetes.io/node-name": ["node-1"],
        },
    },
}
CALLER = Caller(
    "shop",
    "cart",
    "system:serviceaccount:shop:cart",
    "sa-uid",
    ("system:serviceaccounts", "system:serviceaccounts:shop", "system:authenticated"),
    (
        ("authentication.kubernetes.io/pod-name", ("cart-0",)),
        ("authentication.kubernetes.io/pod-uid", ("pod-uid",)),
        ("authentication.kubernetes.io/node-name", ("node-1",)),
    ),
    "cart-0",
    "pod-uid",
    "node-1",
)


def encode(part: object) -> str:
    """Return one part of a JWT."""
    return urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")


def token(header: object = None, claims: object = None) -> str:
    """Return a JWT with any signature."""
    return f"{encode(header or {'alg': 'RS256', 'kid': 'k'})}.{encode(CLAIMS if claims is None else claims)}.c2ln"


@pytest.mark.parametrize("audience", [AUDIENCE, [AUDIENCE], ["other", AUDIENCE]])
def test_what_may_be_good_is_asked_about(audience: object) -> None:
    """A token with the right audience is not refused early; its audience may be one text or several."""
    assert refuse_early(token(claims=CLAIMS | {"aud": audience}), AUDIENCE, NOW) is None


@pytest.mark.parametrize(
    ("assertion", "words"),
    [
        ("a.b.c", "cannot be read"),
        (f"{encode({'alg': 'RS256'})}.!.c2ln", "cannot be read"),
        (f"{encode([1])}.{encode(CLAIMS)}.c2ln", "cannot be read"),
        (token({"alg": "none"}), "not signed"),
        (token({"alg": "HS256"}), "not signed"),
        (token({"kid": "k"}), "not signed"),
        (token({"alg": ["RS256"]}), "not signed"),
        (token({"alg": {}}), "not signed"),
        (token(claims=CLAIMS | {"exp": float("nan")}), "expired"),
        (token(claims=CLAIMS | {"aud": ["api://AzureADTokenExchange"]}), f"not for audience {AUDIENCE}"),
        (token(claims=CLAIMS | {"aud": "https://kubernetes.default.svc"}), f"not for audience {AUDIENCE}"),
        (token(claims={"exp": NOW + 1}), f"not for audience {AUDIENCE}"),
        (token(claims=CLAIMS | {"exp": NOW}), "expired"),
        (token(claims=CLAIMS | {"exp": "soon"}), "expired"),
    ],
)
def test_what_cannot_be_good_is_refused_at_once(assertion: str, words: str) -> None:
    """A token that is malformed, unsigned, expired or for another audience is 401 before the API server is asked."""
    refusal = refuse_early(assertion, AUDIENCE, NOW)
    assert refusal is not None
    assert (refusal.status, refusal.code) == (401, "invalid_client")
    assert words in refusal.message


def test_a_caller() -> None:
    """A caller has the service account's name, namespace and groups, and the pod and node of its token."""
    assert caller_of(STATUS, AUDIENCE) == CALLER
    assert CALLER.key == "shop/cart"


def user(**changes: object) -> dict[str, Any]:
    """Return a status with a user that is changed."""
    return STATUS | {"user": STATUS["user"] | changes}


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ({}, "does not accept"),
        (STATUS | {"authenticated": "true"}, "does not accept"),
        (STATUS | {"user": None}, "does not accept"),
        (STATUS | {"audiences": ["other"]}, "audience"),
        (STATUS | {"audiences": None}, "audience"),
        (user(username="system:node:node-1"), "no service account"),
        (user(username="system:serviceaccount:"), "no service account"),
        (user(username="x:system:serviceaccount:a:b"), "no service account"),
        (user(extra={}), "bound to no pod"),
        (user(extra=None), "bound to no pod"),
        (user(extra={"authentication.kubernetes.io/pod-name": "text"}), "bound to no pod"),
        (user(extra={"authentication.kubernetes.io/pod-name": ["a", "b"]}), "bound to no pod"),
    ],
)
def test_nobody(status: dict[str, Any], words: str) -> None:
    """When the API server's answer names no pod's service account, the refusal is 401 with the reason."""
    refusal = caller_of(status, AUDIENCE)
    assert isinstance(refusal, Refusal)
    assert refusal.status == 401
    assert words in refusal.message


def test_a_token_of_no_pod_where_that_is_accepted() -> None:
    """With `unbound`, a token that is bound to no pod is accepted, such as one of `kubectl create token`."""
    caller = caller_of(user(extra={}), AUDIENCE, unbound=True)
    assert isinstance(caller, Caller)
    assert (caller.key, caller.pod) == ("shop/cart", "")


def test_the_review_of_access_has_aks_spelling() -> None:
    """Verb, group and resource are AKS's, so that its ClusterRoles work unchanged."""
    spec = grants.access_review(CALLER, CLIENT)
    assert spec["resourceAttributes"] == {
        "verb": "use-managed-identity",
        "group": "cid.wi.aks.azure.com",
        "resource": CLIENT,
    }
    assert (spec["user"], spec["groups"]) == (CALLER.username, list(CALLER.groups))
    assert spec["extra"]["authentication.kubernetes.io/pod-uid"] == ["pod-uid"]


def test_access_is_what_the_api_server_allows() -> None:
    """Anything but a plain permission is 403, and the message says who lacks what."""
    assert grants.refuse_access({"allowed": True}, CALLER, CLIENT) is None
    for status in ({}, {"allowed": False}, {"allowed": "true"}, {"allowed": True, "denied": True}):
        refusal = grants.refuse_access(status, CALLER, CLIENT)
        assert refusal is not None
        assert (refusal.status, refusal.code) == (403, "unauthorized_client")
        for part in ("shop/cart", CLIENT, "use-managed-identity", "cid.wi.aks.azure.com"):
            assert part in refusal.message


def test_a_broker_gives_the_identities_of_its_list() -> None:
    """An identity that is not in a broker's list is refused; an empty list allows all identities."""
    assert grants.refuse_identity(CLIENT, frozenset()) is None
    assert grants.refuse_identity(CLIENT, {CLIENT}) is None
    refusal = grants.refuse_identity(CLIENT, {"another"})
    assert refusal is not None
    assert refusal.status == 403


def test_the_credential_that_a_broker_needs() -> None:
    """The sentence names issuer, subject and audience of the broker's own token.

    The audience differs between clouds.
    """
    subject = "issuer https://cluster, subject system:serviceaccount:shop:cart"
    for audience in (["api://AzureADTokenExchangeChina"], "api://AzureADTokenExchangeChina"):
        text = credential_of(token(claims={**CLAIMS, "aud": audience}))
        assert text == f"{subject}, audience api://AzureADTokenExchangeChina"
    without = {name: value for name, value in CLAIMS.items() if name != "aud"}
    assert credential_of(token(claims=without)) == f"{subject}, audience api://AzureADTokenExchange"
    assert credential_of("a.b") is None
    assert credential_of("a.b.c") is None
    assert credential_of(token(claims={"iss": 1})) is None
