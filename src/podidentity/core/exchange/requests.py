"""What a request to the token proxy asks for: paths, methods and the form of a token request.

The form is that of Entra ID's client credentials flow with a federated credential (learn.microsoft.com/entra/
identity-platform/v2-oauth2-client-creds-grant-flow): `client_id`, `scope`, `client_assertion`, its type and the grant
type. `Host` and TLS's server name decide nothing: each SDK sends another one.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple
from urllib.parse import parse_qsl

from podidentity.core.model.federation import ASSERTION_TYPE, GUID
from podidentity.core.model.http_request import HttpRequest
from podidentity.core.model.object_names import is_label, is_subdomain
from podidentity.core.model.service_account_tokens import JWT

ASSERTION_LIMIT_CHARACTERS = 16 * 1024
BODY_LIMIT_BYTES = 64 * 1024
CAPABILITIES = '{"access_token":{"xms_cc":{"values":["CP1"]}}}'
"""Claims by which a client says that it understands challenges (continuous access evaluation)."""
FORM = "application/x-www-form-urlencoded"
_FIELD_LIMIT = 64
_SCOPE_LIMIT_CHARACTERS = 600
_CLAIMS_LIMIT_CHARACTERS = 4096
_DEFAULT_SCOPE = "/.default"
_IGNORED_SCOPES = frozenset({"openid", "offline_access", "profile"})
"""MSAL for Go and Java adds them; they mean nothing without a user."""
_TOKEN_PATH = re.compile(r"/([^/]+)/oauth2/v2\.0/token")
_CONFIGURATION_PATH = re.compile(r"/([^/]+)/v2\.0/\.well-known/openid-configuration")
_INSTANCE_PATH = re.compile(r"/[^/]+/discovery/instance")
NODE_PATH = "/podidentity/v1/pod-token"
"""NMI's own path: the form of a token request, and the pod in three more fields."""
TOKEN_FILE_PATH = "/podidentity/v1/token-file"  # noqa: S105  # a path
"""NMI's path for what pods send to its token-file door: the form has the pod's own token, like an SDK's."""
_POD_FIELDS = ("pod_namespace", "pod_name", "pod_uid")
_UID = re.compile(r"[A-Za-z0-9-]{1,128}")
_USED_FIELDS = ("client_id", "client_assertion", "client_assertion_type", "grant_type", "scope", "claims")


class Refusal(NamedTuple):
    """A request that gets no token. `code` is OAuth's (RFC 6749, section 5.2), `message` says what to do.

    `retry_after_seconds` is None where asking again is no use. `codes` are Entra ID's numbers when it refused. `allow`
    is the method to use, where another was used.
    """

    status: int
    code: str
    message: str
    retry_after_seconds: float | None = None
    codes: tuple[int, ...] = ()
    allow: str = ""


class TokenRequest(NamedTuple):
    """A token request that is well-formed. Nothing in it is proven yet.

    `client_id` is lower-case; `scope` ends with `/.default`. `claims` is a JSON text, or "". It is a `challenge`, whose
    answer nobody may share, unless it is `CAPABILITIES`, which SDKs put into every request.
    """

    client_id: str
    scope: str
    assertion: str
    claims: str = ""
    challenge: bool = False

    def __repr__(self) -> str:
        return f"TokenRequest({self.client_id}, {self.scope}, ...)"


class PodReference(NamedTuple):
    """The pod in whose name NMI asks."""

    namespace: str
    name: str
    uid: str

    @property
    def key(self) -> str:
        """The pod as `namespace/name`."""
        return f"{self.namespace}/{self.name}"


class PodTokenRequest(NamedTuple):
    """A token request of a node's NMI in the name of a pod; the assertion is NMI's own token."""

    request: TokenRequest
    pod: PodReference


class ConfigurationRequest(NamedTuple):
    """The tenant's openid-configuration is asked for."""


class InstanceRequest(NamedTuple):
    """It is asked whether an authority is known, and by which names."""


ProxyRequest = TokenRequest | PodTokenRequest | ConfigurationRequest | InstanceRequest | Refusal


def parse(message: HttpRequest, tenant_id: str) -> ProxyRequest:
    """Return what a request asks for. `tenant_id` is the tenant of the broker's identities, in lower case."""
    if message.path == "/":
        return _wrong_method(message, "POST") or _token_request(message, _form_texts(message))
    if message.path == NODE_PATH:
        return _wrong_method(message, "POST") or _pod_token_request(message)
    if message.path == TOKEN_FILE_PATH:
        return _wrong_method(message, "POST") or _token_request(message, (message.body,))
    if (match := _TOKEN_PATH.fullmatch(message.path)) is not None:
        refusal = _wrong_method(message, "POST") or _wrong_tenant(match[1], tenant_id)
        return refusal or _token_request(message, (message.body,))
    if (match := _CONFIGURATION_PATH.fullmatch(message.path)) is not None:
        return _wrong_method(message, "GET") or _wrong_tenant(match[1], tenant_id) or ConfigurationRequest()
    if _INSTANCE_PATH.fullmatch(message.path) is not None:
        return _wrong_method(message, "GET") or InstanceRequest()
    words = "this broker has no such path; tokens are asked with POST /{tenant}/oauth2/v2.0/token"
    return Refusal(404, "invalid_request", words)


def _wrong_method(message: HttpRequest, method: str) -> Refusal | None:
    if message.method == method:
        return None
    return Refusal(405, "invalid_request", f"{message.path[:200]} is asked with {method}", allow=method)


def _wrong_tenant(tenant: str, tenant_id: str) -> Refusal | None:
    if tenant.lower() == tenant_id:
        return None
    message = (
        f'the identities of this broker are in tenant {tenant_id}, not in "{tenant[:100]}"; set AZURE_TENANT_ID to it'
    )
    return Refusal(400, "invalid_request", message)


def _form_texts(message: HttpRequest) -> tuple[bytes, ...]:
    """Return the forms of a POST to `/`: in the body, or as one client has it, in the query."""
    return tuple(text for text in (message.body, message.query.encode()) if text)


def _pod_token_request(message: HttpRequest) -> PodTokenRequest | Refusal:
    form = _form(message, (message.body,), _USED_FIELDS + _POD_FIELDS)
    if isinstance(form, Refusal):
        return form
    request = _request_of(form)
    if isinstance(request, Refusal):
        return request
    pod = PodReference(form["pod_namespace"], form["pod_name"], form["pod_uid"])
    if not (is_label(pod.namespace) and is_subdomain(pod.name) and _UID.fullmatch(pod.uid)):
        return _malformed("pod_namespace, pod_name and pod_uid must name the pod that the token is for")
    return PodTokenRequest(request, pod)


def _token_request(message: HttpRequest, texts: tuple[bytes, ...]) -> TokenRequest | Refusal:
    form = _form(message, texts, _USED_FIELDS)
    return form if isinstance(form, Refusal) else _request_of(form)


def _form(message: HttpRequest, texts: tuple[bytes, ...], names: Sequence[str]) -> Mapping[str, str] | Refusal:
    if len(texts) != 1 or (texts[0] is message.body and message.content_type.partition(";")[0].strip().lower() != FORM):
        return _malformed(f"the request has not exactly one form; send it as the body, with Content-Type: {FORM}")
    if len(message.body) > BODY_LIMIT_BYTES:
        return Refusal(413, "invalid_request", f"the body is longer than {BODY_LIMIT_BYTES} bytes")
    return _read_form(texts[0], names)


def _read_form(form: bytes, used_names: Sequence[str]) -> Mapping[str, str] | Refusal:
    """Return the fields that count, each once: two parsers may take different ones of two."""
    try:
        text = form.decode("ascii")
        pairs = parse_qsl(
            text, keep_blank_values=True, strict_parsing=True, errors="strict", max_num_fields=_FIELD_LIMIT
        )
    except ValueError:
        return _malformed(f"the body is no form of at most {_FIELD_LIMIT} fields; encode it as {FORM}")
    fields = dict.fromkeys(used_names, "")
    names = [name for name, _ in pairs]
    for name in used_names:
        if names.count(name) > 1:
            return _malformed(f"the form has {name} {names.count(name)} times; send it once")
    fields.update((name, value) for name, value in pairs if name in fields)
    return fields


def _request_of(form: Mapping[str, str]) -> TokenRequest | Refusal:
    if form["grant_type"] != "client_credentials":
        return Refusal(400, "unsupported_grant_type", "only grant_type client_credentials is answered here")
    if form["client_assertion_type"] != ASSERTION_TYPE:
        return _malformed(f"client_assertion_type must be {ASSERTION_TYPE}")
    client_id = form["client_id"].lower()
    if GUID.fullmatch(client_id) is None:
        return _malformed("client_id is no ID of the form 00000000-0000-0000-0000-000000000000; give the identity's")
    assertion = form["client_assertion"]
    if len(assertion) > ASSERTION_LIMIT_CHARACTERS or JWT.fullmatch(assertion) is None:
        message = "client_assertion is no signed token (JWT); send the pod's service account token as it is in its file"
        return Refusal(401, "invalid_client", message)
    scope = _scope(form["scope"])
    if isinstance(scope, Refusal):
        return scope
    claims = _claims(form["claims"])
    if claims is None:
        return _malformed(f"claims is no JSON object of at most {_CLAIMS_LIMIT_CHARACTERS} characters")
    return TokenRequest(client_id, scope, assertion, *claims)


def _scope(text: str) -> str | Refusal:
    scopes = [scope for scope in text.split() if scope not in _IGNORED_SCOPES]
    is_one = len(scopes) == 1 and scopes[0].endswith(_DEFAULT_SCOPE) and scopes[0] != _DEFAULT_SCOPE
    if is_one and len(text) <= _SCOPE_LIMIT_CHARACTERS and scopes[0].isprintable():
        return scopes[0]
    message = "scope must be one resource followed by /.default, such as https://vault.azure.net/.default"
    return Refusal(400, "invalid_scope", message)


def _claims(text: str) -> tuple[str, bool] | None:
    """Return the claims to ask with, and whether they are a challenge; None when they cannot be read."""
    if not text:
        return "", False
    try:
        content = json.loads(text) if len(text) <= _CLAIMS_LIMIT_CHARACTERS else None
        if not isinstance(content, dict):
            return None
        return (CAPABILITIES, False) if _are_capabilities(content) else (text, True)
    except (ValueError, RecursionError):  # what is nested so deep that it could just be read cannot be written
        return None


def _are_capabilities(claims: Mapping[str, object]) -> bool:
    """Whether claims only say what a client understands, in any of the SDKs' spellings.

    MSAL for JavaScript writes `cp1`, and adds wishes for an ID token, which nobody gets without a user.
    """
    capabilities = {name: value for name, value in claims.items() if name != "id_token"}
    wishes = claims.get("id_token", {})
    are_wishes = isinstance(wishes, dict) and all(wish == {"essential": False} for wish in wishes.values())
    return are_wishes and json.dumps(capabilities).lower() == json.dumps(json.loads(CAPABILITIES)).lower()


def _malformed(message: str) -> Refusal:
    return Refusal(400, "invalid_request", message)
