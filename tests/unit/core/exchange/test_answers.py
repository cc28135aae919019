"""What the token proxy answers to a client."""

import json

from podidentity.core.exchange import answers
from podidentity.core.exchange.requests import Refusal
from podidentity.core.tokens.imds import Token
from podidentity.errors import AzureError

AUTHORITY = "https://login.microsoftonline.com"


def test_a_token() -> None:
    """The answer has Entra ID's form, with lifetimes as whole numbers of seconds from now."""
    document = json.loads(answers.token_document(Token("secret", 1100, 0, "scope"), 1000.9))
    assert document == {"token_type": "Bearer", "expires_in": 100, "ext_expires_in": 100, "access_token": "secret"}
    assert json.loads(answers.token_document(Token("secret", 900, 0, "scope"), 1000))["expires_in"] == 0


def test_an_error() -> None:
    """An error is JSON whose description SDKs show."""
    refusal = Refusal(401, "invalid_client", 'say "please"', codes=(700213,))
    document = json.loads(answers.error_document(refusal, "trace", "2026-01-01T00:00:00Z"))
    assert document == {
        "error": "invalid_client",
        "error_description": 'say "please"',
        "error_codes": [700213],
        "timestamp": "2026-01-01T00:00:00Z",
        "trace_id": "trace",
    }


def test_what_entra_says_is_passed_on() -> None:
    """Entra ID's refusal keeps its status, its error code and number, and its Retry-After."""
    error = AzureError("AADSTS700016: not found", status=400, code="unauthorized_client", retry_after_seconds=7.0)
    assert answers.refusal_of(error, "who") == Refusal(
        400, "unauthorized_client", "AADSTS700016: not found", 7.0, (700016,)
    )


def test_a_missing_credential_is_explained() -> None:
    """When Entra ID misses a federated credential, the description says what the credential must name."""
    error = AzureError("AADSTS700213: no match", status=401, code="invalid_client")
    assert "issuer I, subject S" in answers.refusal_of(error, "issuer I, subject S").message
    error = AzureError("AADSTS70025: no credentials", status=401, code="invalid_client")
    assert "issuer I, subject S" in answers.refusal_of(error, "issuer I, subject S").message


def test_no_answer_of_entra_is_503() -> None:
    """Without an answer of Entra ID the status is 503, after which clients try again."""
    refusal = answers.refusal_of(AzureError("nothing"), "who")
    assert (refusal.status, refusal.code, refusal.retry_after_seconds) == (503, "temporarily_unavailable", 1.0)
    assert answers.refusal_of(AzureError("later", retry_after_seconds=4.0), "who").retry_after_seconds == 4.0


def test_a_success_without_a_token_is_502() -> None:
    """A success without a token cannot be Entra ID's own answer."""
    refusal = answers.refusal_of(AzureError("odd", status=200), "who")
    assert (refusal.status, refusal.code) == (502, "server_error")


def test_discovery() -> None:
    """The documents name Entra ID's real endpoints; a client keeps only the path of those URLs."""
    configuration = json.loads(answers.configuration_document(AUTHORITY, "t"))
    assert configuration["token_endpoint"] == f"{AUTHORITY}/t/oauth2/v2.0/token"
    assert configuration["issuer"] == f"{AUTHORITY}/t/v2.0"
    instance = json.loads(answers.instance_document(AUTHORITY, "t"))
    assert instance["tenant_discovery_endpoint"] == f"{AUTHORITY}/t/v2.0/.well-known/openid-configuration"
    assert instance["metadata"][0]["preferred_cache"] == "login.windows.net"
    own = json.loads(answers.instance_document("https://login.example", "t"))
    assert own["metadata"] == [
        {"preferred_network": "login.example", "preferred_cache": "login.example", "aliases": ["login.example"]}
    ]
