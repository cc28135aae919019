"""Tokens of service principals: reads the Secret of each, asks Entra ID for each of its tenants.

Whether the Secret and the address may be used at all was decided before, by `core.sources`. `ByKind` sends each source
to the one that serves it. Constructed by `daemon`.
"""

from podidentity.azure.entra import Application, Certificate, Entra
from podidentity.core.imds import Token
from podidentity.core.sources import ManagedIdentity, ServicePrincipal, Source
from podidentity.errors import ConfigurationError
from podidentity.nmi.credentials import Credentials
from podidentity.nmi.ports import Clock, Grant, SecretContents, Tokens


class ByKind:
    """Asks IMDS for managed identities and Entra ID for service principals."""

    def __init__(self, managed: Tokens, principals: Tokens) -> None:
        self._managed = managed
        self._principals = principals

    async def acquire(self, source: Source, resource: str) -> Grant:
        """Ask the one that knows."""
        asked = self._managed if isinstance(source, ManagedIdentity) else self._principals
        return await asked.acquire(source, resource)


class Principals:
    """Tokens with secrets and certificates out of Kubernetes Secrets."""

    def __init__(self, credentials: Credentials, entra: Entra, clock: Clock) -> None:
        self._credentials = credentials
        self._entra = entra
        self._clock = clock

    async def acquire(self, source: Source, resource: str) -> Grant:
        """Ask Entra ID: one token, or with auxiliary tenants one for each tenant, the primary one's first.

        Raises `AzureError` with Entra ID's words, `KubernetesError` or `ConfigurationError` about the Secret.
        """
        if not isinstance(source, ServicePrincipal):
            raise ConfigurationError("only service principals are asked for at Entra ID")
        credential = _credential(source, await self._credentials.read(source.secret))
        tokens = [
            await self._token(source, tenant, credential, resource)
            for tenant in (source.tenant_id, *source.auxiliary_tenant_ids)
        ]
        return tuple(tokens) if source.auxiliary_tenant_ids else tokens[0]

    async def _token(
        self, source: ServicePrincipal, tenant_id: str, credential: str | Certificate, resource: str
    ) -> Token:
        asked_at = int(self._clock.wall())  # before the call: never later than Entra ID's own end of the token
        application = Application(source.endpoint, tenant_id, source.client_id, credential)
        try:
            granted = await self._entra.token(application, resource)
        except ConfigurationError as error:
            raise ConfigurationError(f"Secret {source.secret}: {error}; correct the Secret") from None
        return Token(granted.access_token, asked_at + granted.expires_in_seconds, asked_at, resource)


def _credential(source: ServicePrincipal, contents: SecretContents) -> str | Certificate:
    """Take what the identity's type needs. Raises `ConfigurationError` when the Secret lacks it."""
    if not source.certificate:
        # Any one key, as upstream has it; of several the first, so that the answer does not depend on chance.
        value = contents[min(contents)] if contents else b""
        text = value.decode(errors="replace").rstrip("\r\n")  # `echo secret | base64` encodes the line's end too
        if not text:
            raise ConfigurationError(
                f"Secret {source.secret} is empty; put the service principal's secret into one key"
            )
        return text
    lowered = {name.lower(): value for name, value in contents.items()}
    if not lowered.get("certificate"):
        raise ConfigurationError(f'Secret {source.secret} has no key "certificate"; put the PKCS#12 archive there')
    return Certificate(lowered["certificate"], lowered.get("password", b"").rstrip(b"\r\n"))
