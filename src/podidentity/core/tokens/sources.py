"""Where the token of a chosen identity comes from: IMDS by which ID, or Entra ID with which credentials.

Two identities with one source share its tokens: a source is the key of NMI's token cache.
"""

import re
from typing import NamedTuple

from podidentity.core.model.federation import GUID
from podidentity.core.model.identities import AzureIdentity, IdentityType, SecretReference
from podidentity.core.model.snapshot import Pod
from podidentity.core.tokens import exemptions
from podidentity.core.tokens.imds import Refusal, TokenRequest

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


class FederatedIdentity(NamedTuple):
    """Entra ID, asked with an assertion that another issuer signed, for a managed identity or an application.

    Both IDs are lower-case. `claims` is the JSON text of further claims that the token shall have, or "".
    """

    tenant_id: str
    client_id: str
    claims: str = ""


class BrokerIdentity(NamedTuple):
    """The broker, asked by NMI in the name of one pod; the grants of that pod's service account decide.

    Without a pod it only says which identity: the tokens of each pod are its own.
    """

    client_id: str
    namespace: str = ""
    pod: str = ""
    pod_uid: str = ""


class ProvenIdentity(NamedTuple):
    """The broker, asked by NMI with a pod's own token, `proof`: the grants of that token's service account decide."""

    client_id: str
    namespace: str
    proof: str

    def __repr__(self) -> str:
        return f"ProvenIdentity({self.client_id}, {self.namespace}, ...)"


Source = ManagedIdentity | ServicePrincipal | FederatedIdentity | BrokerIdentity | ProvenIdentity


class SourceRules(NamedTuple):
    """Settings that say which sources may be used.

    `secret_namespaces` are those from which every AzureIdentity may name a Secret, besides its own. `logins` are the
    addresses of known clouds and of the configured one, lower-case: a Secret is sent nowhere else. `broker` says
    whether there is one.
    """

    secret_namespaces: frozenset[str] = frozenset()
    logins: frozenset[str] = frozenset({PUBLIC_LOGIN})
    broker: bool = False


def allowed_source(identity: AzureIdentity, pod: Pod, rules: SourceRules) -> Source | Refusal:
    """Return where the token of `identity` for `pod` comes from, or why it may not come from there.

    Asked before any cache: otherwise whoever names somebody else's Secret would be given the token made with it.
    """
    source = source_of(identity)
    if isinstance(source, BrokerIdentity):
        if not rules.broker:
            return Refusal(503, f"AzureIdentity {identity.key} needs the broker, which NMI does not know; set --broker")
        return source._replace(namespace=pod.key.namespace, pod=pod.key.name, pod_uid=pod.uid)
    if not isinstance(source, ServicePrincipal):
        return source
    return _principal_refusal(identity, source, rules) or source


def _principal_refusal(identity: AzureIdentity, source: ServicePrincipal, rules: SourceRules) -> Refusal | None:
    message = exemptions.secret_refusal(identity, rules.secret_namespaces)
    if message is None and source.endpoint.lower() not in rules.logins:
        message = (
            f"AzureIdentity {identity.key} has adEndpoint {identity.ad_endpoint}, which is no known cloud's; "
            "correct it, or describe your cloud in the file that AZURE_ENVIRONMENT_FILEPATH names"
        )
    return None if message is None else Refusal(503, message)


def source_of(identity: AzureIdentity) -> Source | Refusal:
    """Return where the token of `identity` comes from.

    A user-assigned identity is asked for by its resource ID when that is well-formed: an allowed resource ID written
    beside a neighbour's client ID must not yield the neighbour's token.
    """
    match identity.type:
        case IdentityType.USER_ASSIGNED:
            return _managed(identity)
        case IdentityType.SERVICE_PRINCIPAL | IdentityType.SERVICE_PRINCIPAL_CERTIFICATE:
            return _principal(identity)
        case IdentityType.FEDERATED:
            return _federated(identity)
        case _:
            message = f"AzureIdentity {identity.key} has type {identity.type}; 0, 1 and 2 are known"
            return Refusal(503, message)


def own_source(request: TokenRequest) -> ManagedIdentity:
    """Return the source for an excepted pod: whatever it asks of IMDS, as if podidentity were not there."""
    return ManagedIdentity(request.resource_id, request.client_id, request.object_id)


def _managed(identity: AzureIdentity) -> ManagedIdentity | Refusal:
    if identity.arm_id is not None:
        return ManagedIdentity(resource_id=identity.resource_id)
    if identity.client_id:
        return ManagedIdentity(client_id=identity.client_id)
    # Without any ID, IMDS would answer with the identity of the machine.
    message = f"AzureIdentity {identity.key} has neither a well-formed resourceID nor a clientID; give it one"
    return Refusal(503, message)


def _federated(identity: AzureIdentity) -> BrokerIdentity | Refusal:
    client_id = identity.client_id.lower()
    if GUID.fullmatch(client_id) is None:
        message = f"AzureIdentity {identity.key} has its tokens from the broker, which needs its clientID; give it one"
        return Refusal(503, message)
    return BrokerIdentity(client_id)


def _principal(identity: AzureIdentity) -> ServicePrincipal | Refusal:
    missing = [
        name for name, value in (("tenantID", identity.tenant_id), ("clientID", identity.client_id)) if not value
    ]
    if missing or identity.client_password is None:
        fields = " and ".join([*missing, *(["clientPassword"] if identity.client_password is None else [])])
        return Refusal(503, f"AzureIdentity {identity.key} lacks {fields}; a service principal needs it")
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
