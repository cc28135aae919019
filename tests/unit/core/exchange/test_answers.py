"""What the token proxy answers."""

import json

from podidentity.core.exchange import answers
from podidentity.core.exchange.requests import Refusal
from podidentity.core.tokens.imds import Token
from podidentity.errors import AzureError

AUTHORITY = "https://login.microsoftonline.com"


def test_a_token() -> None:
    """As Entra ID writes it: whole numbers, counted from now."""
    document = json.loads(answers.token_document(Token("secret", 1100, 0, "scope"), 1000.9))
    assert document == {"token_type": "Bearer", "expires_in": 100, "ext_expires_in": 100, "access_token": "secret"}
    assert json.loads(answers.token_document(Token("secret", 900, 0, "scope"), 1000))["expires_in"] == 0


def test_an_error() -> None:
    """It is JSON, and SDKs show its description."""
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
    """Its status, word, number and pause."""
    error = AzureError("AADSTS700016: not found", status=400, code="unauthorized_client", retry_after_seconds=7.0)
    assert answers.refusal_of(error, "who") == Refusal(
        400, "unauthorized_client", "AADSTS700016: not found", 7.0, (700016,)
    )


def test_a_missing_credential_is_explained() -> None:
    """The description has what the credential must name."""
    error = AzureError("AADSTS700213: no match", status=401, code="invalid_client")
    assert "issuer I, subject S" in answers.refusal_of(error, "issuer I, subject S").message
    error = AzureError("AADSTS70025: no credentials", status=401, code="invalid_client")
    assert "issuer I, subject S" in answers.refusal_of(error, "issuer I, subject S").message


def test_no_answer_of_entra_is_503() -> None:
    """Clients try again after it."""
    refusal = answers.refusal_of(AzureError("nothing"), "who")
    assert (refusal.status, refusal.code, refusal.retry_after_seconds) == (503, "temporarily_unavailable", 1.0)
    assert answers.refusal_of(AzureError("later", retry_after_seconds=4.0), "who").retry_after_seconds == 4.0


def test_a_success_without_a_token_is_502() -> None:
    """Somebody else answered in its place."""
    refusal = answers.refusal_of(AzureError("odd", status=200), "who")
    assert (refusal.status, refusal.code) == (502, "server_error")


def test_discovery() -> None:
    """The real endpoints: of their URLs a client keeps the path."""
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
