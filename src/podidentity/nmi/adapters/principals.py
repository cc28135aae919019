"""Tokens of service principals: reads the Secret of each, asks Entra ID for each of its tenants.

Whether the Secret and the address may be used at all was decided before, by `core`. `TokensByKind` sends each source
to the one that serves it.
"""

from podidentity.azure.certificates import Certificate
from podidentity.azure.entra import Application, Entra
from podidentity.core.tokens.imds import Token
from podidentity.core.tokens.sources import BrokerIdentity, ManagedIdentity, ServicePrincipal, Source
from podidentity.errors import ConfigurationError
from podidentity.issuance.ports import Grant, Tokens
from podidentity.nmi.credentials import Credentials
from podidentity.nmi.ports import SecretContents
from podidentity.timing import Clock


class TokensByKind:
    """Asks IMDS for managed identities, Entra ID for service principals, and the broker for what it is asked for."""

    def __init__(self, managed: Tokens, principals: Tokens, broker: Tokens) -> None:
        self._managed = managed
        self._principals = principals
        self._broker = broker

    async def acquire(self, source: Source, resource: str) -> Grant:
        """Return a token of the service that issues tokens of `source`. Raises what it raises."""
        match source:
            case ManagedIdentity():
                return await self._managed.acquire(source, resource)
            case BrokerIdentity():
                return await self._broker.acquire(source, resource)
            case _:
                return await self._principals.acquire(source, resource)


class Principals:
    """Tokens with secrets and certificates out of Kubernetes Secrets."""

    def __init__(self, credentials: Credentials, entra: Entra, clock: Clock) -> None:
        self._credentials = credentials
        self._entra = entra
        self._clock = clock

    async def acquire(self, source: Source, resource: str) -> Grant:
        """Return one token of Entra ID, or with auxiliary tenants one for each tenant, the primary one's first.

        Raises `AzureError` with Entra ID's words, `KubernetesError` or `ConfigurationError` about the Secret.
        """
        if not isinstance(source, ServicePrincipal):
            raise ConfigurationError("NMI asks Entra ID for tokens of service principals alone; report this as a bug")
        credential = _credential(source, await self._credentials.read(source.secret))
        tokens = [
            await self._token(source, tenant, credential, resource)
            for tenant in (source.tenant_id, *source.auxiliary_tenant_ids)
        ]
        return tuple(tokens) if source.auxiliary_tenant_ids else tokens[0]

    async def _token(
        self, source: ServicePrincipal, tenant_id: str, credential: str | Certificate, resource: str
    ) -> Token:
        start = int(self._clock.wall())  # before the call: never later than Entra ID's own end of the token
        application = Application(source.endpoint, tenant_id, source.client_id, credential)
        try:
            response = await self._entra.token(application, resource)
        except ConfigurationError as error:
            raise ConfigurationError(f"Secret {source.secret}: {error}; correct the Secret") from None
        return Token(response.access_token, start + response.expires_in_seconds, start, resource)


def _credential(source: ServicePrincipal, contents: SecretContents) -> str | Certificate:
    """Return what the identity's type needs. Raises `ConfigurationError` when the Secret lacks it."""
    if not source.certificate:
        # Any one key, as upstream has it; of several the first, so that the answer does not depend on chance.
        value = contents[min(contents)] if contents else b""
        text = value.decode(errors="replace").rstrip("\r\n")  # `echo secret | base64` encodes the line's end too
        if not text:
            raise ConfigurationError(
                f"Secret {source.secret} is empty; put the service principal's secret into one key"
            )
        return text
    values = {name.lower(): value for name, value in contents.items()}
    if not values.get("certificate"):
        raise ConfigurationError(f'Secret {source.secret} has no key "certificate"; put the PKCS#12 archive there')
    return Certificate(values["certificate"], values.get("password", b"").rstrip(b"\r\n"))
