"""Coverage-guided fuzzing of the token proxy's requests: `python tests/fuzz/forms.py -max_total_time=30 CORPUS`.

An input is a line with method and target, a line with the content type, and a body. `check` says what must hold for
each input, against the rules written once more here, naively.
"""

import importlib
import re
import sys
from pathlib import Path
from urllib.parse import quote, unquote_to_bytes

if __name__ == "__main__":
    import atheris

    sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "src")]
    with atheris.instrument_imports(include=["podidentity.core.exchange"]):
        importlib.import_module("podidentity.core.exchange.callers")

from podidentity.core.exchange.callers import AUDIENCE, refuse_early
from podidentity.core.exchange.requests import (
    CAPABILITIES,
    FORM,
    NODE_PATH,
    TOKEN_FILE_PATH,
    PodTokenRequest,
    Refusal,
    TokenRequest,
    parse,
)
from podidentity.core.model.http_request import HttpRequest

TENANT = "11111111-2222-3333-4444-555555555555"
CLIENT = "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee"
PATH = f"/{TENANT}/oauth2/v2.0/token"
TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
HEADER = "eyJhbGciOiJSUzI1NiJ9"
CLAIMS = "eyJhdWQiOlsiYXBpOi8vQUtTSWRlbnRpdHlCaW5kaW5nIl0sImV4cCI6MTkwMDAwMDAwMH0"
IGNORED = {"openid", "offline_access", "profile"}
NAMES = ("client_id", "client_assertion", "client_assertion_type", "grant_type", "scope", "claims")
GOOD = (
    f"client_id={CLIENT}&client_assertion={HEADER}.{CLAIMS}.c2ln&client_assertion_type={quote(TYPE)}"
    "&grant_type=client_credentials&scope=https%3A%2F%2Fvault.azure.net%2F.default"
)
SEEDS = (
    f"POST {PATH}\n{FORM}\n{GOOD}",
    f"POST {PATH}?client-request-id=1\n{FORM}; charset=utf-8\n{GOOD}&client_info=1",
    f"POST /\n{FORM}\n{GOOD}",
    f"POST /?{GOOD}\n\n",
    f"POST {PATH}\n{FORM}\n{GOOD}+openid+profile",
    f"POST {PATH}\n{FORM}\n{GOOD}&claims={quote(CAPABILITIES)}",
    f"POST {PATH}\n{FORM}\n{GOOD}&claims=%7B%22a%22%3A1%7D",
    f"POST {PATH}\n{FORM}\n{GOOD}&client_assertion=a.b.c",
    f"POST {PATH}\n{FORM}\n{GOOD}&client%5fassertion=a.b.c",
    f"POST {NODE_PATH}\n{FORM}\n{GOOD}&pod_namespace=shop&pod_name=cart-0&pod_uid=1",
    f"POST {TOKEN_FILE_PATH}\n{FORM}\n{GOOD}",
    f"GET {PATH}\n\n",
    f"GET /{TENANT}/v2.0/.well-known/openid-configuration\n\n",
    "GET /common/discovery/instance?api-version=1.1\n\n",
)


def fuzz(content: bytes) -> None:
    """Cut an input into a request, and check what is made of it."""
    line, _, remaining = content.partition(b"\n")
    content_type, _, body = remaining.partition(b"\n")
    method, _, target = line.decode("latin-1").partition(" ")
    path, _, query = target.partition("?")
    if query.isascii():  # what an HTTP server lets through
        check(HttpRequest(method, path, query, content_type.decode("latin-1"), body))


def check(message: HttpRequest) -> None:
    """Check one request against everything that must hold for it."""
    outcome = parse(message, TENANT)
    expectation = _naive(message)
    if isinstance(outcome, PodTokenRequest):
        assert message.path == NODE_PATH, message
        outcome = outcome.request
    elif isinstance(outcome, TokenRequest):
        assert message.path in {"/", TOKEN_FILE_PATH} or message.path.lower() == PATH, message
    if isinstance(outcome, TokenRequest):
        assert message.method == "POST", message
        assert expectation is not None, f"{outcome} was understood, nothing was asked"
        assert (outcome.client_id, outcome.assertion, outcome.scope) == expectation
        refusal = refuse_early(outcome.assertion, AUDIENCE, 1_800_000_000)
        assert refusal is None or refusal.status == 401, refusal
    elif isinstance(outcome, Refusal):
        assert 400 <= outcome.status < 500, outcome
        assert outcome.message.isprintable() or not message.path.isprintable(), outcome


def _naive(message: HttpRequest) -> tuple[str, str, str] | None:
    """Return client ID, assertion and scope if each is in exactly one place of one form."""
    texts = [
        text for text in ((message.body, message.query.encode()) if message.path == "/" else (message.body,)) if text
    ]
    if len(texts) != 1:
        return None
    pairs = [tuple(_decode(half) for half in pair.partition(b"=")[::2]) for pair in texts[0].split(b"&")]
    fields = {name: [value for key, value in pairs if key == name] for name in NAMES}
    if any(len(values) > 1 for values in fields.values()):
        return None
    client_id, assertion, kind, grant, scope, _ = ("".join(values) for values in fields.values())
    scopes = [word for word in scope.split() if word not in IGNORED]
    well_formed = re.fullmatch(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", client_id)
    if not well_formed or len(scopes) != 1 or not scopes[0].endswith("/.default") or assertion.count(".") != 2:
        return None
    return (client_id.lower(), assertion, scopes[0]) if (kind, grant) == (TYPE, "client_credentials") else None


def _decode(text: bytes) -> str:
    return unquote_to_bytes(text.replace(b"+", b" ")).decode(errors="replace")


if __name__ == "__main__":
    atheris.Setup(sys.argv, fuzz)
    atheris.Fuzz()
