"""Federated credentials as values: what Azure takes, the command that creates one, the words of the exchange.

Rules: learn.microsoft.com/entra/workload-id/workload-identity-federation-considerations.
"""

import hashlib
import json
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass

from podidentity.core.model import arm

EXCHANGE_AUDIENCE = "api://AzureADTokenExchange"
"""The audience of tokens that Entra ID itself exchanges (of the public cloud)."""
PROXY_AUDIENCE = "api://AKSIdentityBinding"
"""The audience of tokens for AKS's token proxy, which the SDKs' users already have in their pods."""
TOKEN_FILE_PATH = "/token-file"  # noqa: S105  # a path
"""Of NMI's token-file door; the client ID of an identity may follow."""
TOKEN_FILE_DIRECTORY = "/var/opt/azcmagent/tokens"  # noqa: S105  # a path
"""Where clients of Azure Arc's dialect accept the file of their proof, on Linux."""
TOKEN_FILE_NAME = "podidentity.key"  # noqa: S105  # a path
ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
"""The `client_assertion_type` of a token as proof (RFC 7523, section 2.2)."""
GUID = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}")
"""The ID of a tenant or a client, in lower case."""
CREDENTIALS_LIMIT = 20
"""At most so many on one identity or application."""
CHARACTERS_LIMIT = 600
"""At most so many in issuer, subject and audience each."""
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_-]{2,119}")
_NAME_CHARACTERS = 100
_DIGEST_DIGITS = 8


@dataclass(frozen=True, slots=True)
class FederatedCredential:
    """Which tokens an identity trusts: those of `issuer` about `subject` for `audience`, compared letter by letter."""

    name: str
    issuer: str
    subject: str
    audience: str


def exchange_form(client_id: str, scope: str, assertion: str) -> dict[str, str]:
    """Return the form that exchanges `assertion` for a token: client credentials with a token as proof (RFC 7523)."""
    return {
        "client_id": client_id,
        "scope": scope,
        "grant_type": "client_credentials",
        "client_assertion_type": ASSERTION_TYPE,
        "client_assertion": assertion,
    }


def subject_of(namespace: str, account: str) -> str:
    """Return the subject of a service account's tokens."""
    return f"system:serviceaccount:{namespace}:{account}"


def name_of(issuer: str, namespace: str, account: str) -> str:
    """Return a name for the credential of a service account: readable, and another one for each cluster."""
    digest = hashlib.sha256(issuer.encode()).hexdigest()[:_DIGEST_DIGITS]
    return f"{re.sub(r'[^a-zA-Z0-9-]', '-', f'{namespace}-{account}')[:_NAME_CHARACTERS]}-{digest}"


def refuse(credential: FederatedCredential, present: Iterable[FederatedCredential]) -> str | None:
    """Return why Azure would not take a credential beside those that are there, and what to do; None when it would."""
    if _NAME.fullmatch(credential.name) is None:
        return (
            f'the name "{credential.name}" is none for a federated credential; give 3 to 120 letters, digits, - and _, '
            "the first a letter or digit"
        )
    if not credential.issuer.startswith("https://"):
        return f'the issuer "{credential.issuer}" is no https address; Entra ID fetches keys with https alone'
    for field in ("issuer", "subject", "audience"):
        if not 0 < len(getattr(credential, field)) <= CHARACTERS_LIMIT:
            return f"the {field} must have 1 to {CHARACTERS_LIMIT} characters; correct it"
    further = [item for item in present if item.name != credential.name]
    for item in further:
        if (item.issuer, item.subject) == (credential.issuer, credential.subject):
            return f'"{item.name}" is already there with this issuer and subject; delete it, or give its name'
    if len(further) >= CREDENTIALS_LIMIT:
        return (
            f"all {CREDENTIALS_LIMIT} credentials are used; delete one, or let the pods use a broker, which needs one "
            "for all of them"
        )
    return None


def creation_command(credential: FederatedCredential, client_id: str, identity: arm.IdentityId | None) -> str:
    """Return the `az` command that creates a credential of an identity; without one, of the application."""
    if identity is None:
        body = {"name": credential.name, "issuer": credential.issuer, "subject": credential.subject}
        text = json.dumps({**body, "audiences": [credential.audience]})
        return f"az ad app federated-credential create --id {client_id} --parameters {shlex.quote(text)}"
    words = (
        ("--subscription", identity.subscription),
        ("--resource-group", identity.group),
        ("--identity-name", identity.name),
        *_credential_words(credential),
    )
    return "az identity federated-credential create " + " ".join(f"{flag} {shlex.quote(word)}" for flag, word in words)


def unplaced_command(credential: FederatedCredential) -> str:
    """Return the command for an identity whose place in Azure is not known: its reader fills in GROUP and IDENTITY."""
    words = " ".join(f"{flag} {shlex.quote(word)}" for flag, word in _credential_words(credential))
    return f"az identity federated-credential create --resource-group GROUP --identity-name IDENTITY {words}"


def _credential_words(credential: FederatedCredential) -> tuple[tuple[str, str], ...]:
    return (
        ("--name", credential.name),
        ("--issuer", credential.issuer),
        ("--subject", credential.subject),
        ("--audiences", credential.audience),
    )
