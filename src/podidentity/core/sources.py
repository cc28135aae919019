"""Where the token of a chosen identity comes from: IMDS by which ID, or Entra ID with which credentials.

Two identities with one source share its tokens: a source is the key of NMI's token cache. Called by NMI and `explain`.
"""

import re
from typing import NamedTuple

from podidentity.core import rules
from podidentity.core.identities import AzureIdentity, IdentityType, SecretReference
from podidentity.core.imds import Refusal, TokenRequest

PUBLIC_LOGIN = "https://login.microsoftonline.com"
"""Where a service principal's token is asked for when its AzureIdentity has no `adEndpoint`, as upstream has it."""

_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,252}")  # a GUID or a domain: it becomes part of a path


class ManagedIdentity(NamedTuple):
    """IMDS, asked by the one ID that is set; with none, the machine's own (system-assigned) identity."""

    resource_id: str = ""
    client_id: str = ""
    object_id: str = ""


class ServicePrincipal(NamedTuple):
    """Entra ID, asked with a secret or certificate read from `secret`.

    `endpoint` has no slash at its end. With auxiliary tenants there is one token for each tenant, the primary one's
    first.
    """

    tenant_id: str
    client_id: str
    endpoint: str
    secret: SecretReference
    certificate: bool
    auxiliary_tenant_ids: tuple[str, ...] = ()


Source = ManagedIdentity | ServicePrincipal


class SourceRules(NamedTuple):
    """Settings that say which sources may be used.

    `secret_namespaces` are those from which every AzureIdentity may name a Secret, besides its own. `logins` are the
    addresses of known clouds and of the configured one, lower-case: a Secret is sent nowhere else.
    """

    secret_namespaces: frozenset[str] = frozenset()
    logins: frozenset[str] = frozenset({PUBLIC_LOGIN})


def allowed_source(identity: AzureIdentity, allowed: SourceRules) -> Source | Refusal:
    """Say where the token of `identity` comes from, or why it may not come from there.

    Asked before any cache: otherwise whoever names somebody else's Secret would be given the token made with it.
    """
    source = source_of(identity)
    if not isinstance(source, ServicePrincipal):
        return source
    why = rules.secret_refusal(identity, allowed.secret_namespaces)
    if why is None and source.endpoint.lower() not in allowed.logins:
        why = (
            f"AzureIdentity {identity.key} has adEndpoint {identity.ad_endpoint}, which is no known cloud's; "
            "correct it, or describe your cloud in the file that AZURE_ENVIRONMENT_FILEPATH names"
        )
    return source if why is None else Refusal(503, why)


def source_of(identity: AzureIdentity) -> Source | Refusal:
    """Say where the token of `identity` comes from.

    A user-assigned identity is asked for by its resource ID when that is well-formed: an allowed resource ID written
    beside a neighbour's client ID must not yield the neighbour's token.
    """
    match identity.type:
        case IdentityType.USER_ASSIGNED:
            return _managed(identity)
        case IdentityType.SERVICE_PRINCIPAL | IdentityType.SERVICE_PRINCIPAL_CERTIFICATE:
            return _principal(identity)
        case _:
            told = f"AzureIdentity {identity.key} has type {identity.type}; 0, 1 and 2 are known"
            return Refusal(503, told)


def own_source(asked: TokenRequest) -> ManagedIdentity:
    """Say what an excepted pod is answered with: whatever it asks of IMDS, as if podidentity were not there."""
    return ManagedIdentity(asked.resource_id, asked.client_id, asked.object_id)


def _managed(identity: AzureIdentity) -> ManagedIdentity | Refusal:
    if identity.arm_id is not None:
        return ManagedIdentity(resource_id=identity.resource_id)
    if identity.client_id:
        return ManagedIdentity(client_id=identity.client_id)
    # Without any ID, IMDS would answer with the identity of the machine.
    told = f"AzureIdentity {identity.key} has neither a well-formed resourceID nor a clientID; give it one"
    return Refusal(503, told)


def _principal(identity: AzureIdentity) -> ServicePrincipal | Refusal:
    missing = [
        name for name, value in (("tenantID", identity.tenant_id), ("clientID", identity.client_id)) if not value
    ]
    if missing or identity.client_password is None:
        named = " and ".join([*missing, *(["clientPassword"] if identity.client_password is None else [])])
        return Refusal(503, f"AzureIdentity {identity.key} lacks {named}; a service principal needs it")
    for tenant in (identity.tenant_id, *identity.auxiliary_tenant_ids):
        if _TENANT.fullmatch(tenant) is None:
            return Refusal(
                503, f'AzureIdentity {identity.key}: tenant "{tenant}" is neither an ID nor a domain; correct it'
            )
    return ServicePrincipal(
        identity.tenant_id,
        identity.client_id,
        identity.ad_endpoint.rstrip("/") or PUBLIC_LOGIN,
        identity.client_password,
        identity.type == IdentityType.SERVICE_PRINCIPAL_CERTIFICATE,
        identity.auxiliary_tenant_ids,
    )
