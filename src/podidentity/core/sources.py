"""Where the token of a chosen identity comes from: IMDS by which ID, or Entra ID with which credentials.

Two identities with one source share its tokens: a source is the key of NMI's token cache. Called by NMI and `explain`.
"""

from typing import NamedTuple

from podidentity.core.identities import AzureIdentity, IdentityType, SecretReference
from podidentity.core.imds import Refusal, TokenRequest


class ManagedIdentity(NamedTuple):
    """IMDS, asked by the one ID that is set; with none, the machine's own (system-assigned) identity."""

    resource_id: str = ""
    client_id: str = ""
    object_id: str = ""


class ServicePrincipal(NamedTuple):
    """Entra ID, asked with a secret or certificate read from `secret`.

    `endpoint` is what the AzureIdentity says, empty for the cloud's own. With auxiliary tenants there is one token for
    each tenant, the primary one's first.
    """

    tenant_id: str
    client_id: str
    endpoint: str
    secret: SecretReference
    certificate: bool
    auxiliary_tenant_ids: tuple[str, ...] = ()


Source = ManagedIdentity | ServicePrincipal


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
    return ServicePrincipal(
        identity.tenant_id,
        identity.client_id,
        identity.ad_endpoint,
        identity.client_password,
        identity.type == IdentityType.SERVICE_PRINCIPAL_CERTIFICATE,
        identity.auxiliary_tenant_ids,
    )
