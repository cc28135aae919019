"""What a token may be for: Azure's own services, and applications of the tenant. Called by `entra` and `imds`."""

import re

from podidentity.lab.azure import answers
from podidentity.lab.azure.state import Principal, State

_OF_AZURE = re.compile(
    r"https://([a-z0-9-]+\.)*(azure\.com|azure\.net|windows\.net|microsoft\.com|azure\.us|usgovcloudapi\.net|"
    r"azure\.cn|chinacloudapi\.cn|azconfig\.io|azurecr\.io|opinsights\.azure\.com)(:443)?(/.*)?",
    re.IGNORECASE,
)
_GUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
EXCHANGE = "api://AzureADTokenExchange"


def check(state: State, principal: Principal, audience: str) -> None:
    """Refuse an audience that no service of Azure, and no application of the tenant, has."""
    if not audience:
        message = "The request body must contain the following parameter: 'resource' or 'scope'."
        raise answers.entra(400, "invalid_request", 900144, message)
    if not known(state, audience):
        raise answers.entra(400, "invalid_resource", 500011, unknown(principal, audience))


def known(state: State, audience: str) -> bool:
    """Whether there is a service, or an application, of this name."""
    if _OF_AZURE.fullmatch(audience) or _GUID.fullmatch(audience) or audience.lower() == EXCHANGE.lower():
        return True
    return audience.startswith("api://") and state.principal_of(audience.removeprefix("api://").rstrip("/")) is not None


def unknown(principal: Principal, audience: str) -> str:
    """Entra ID's sentence."""
    return (
        f"The resource principal named {audience} was not found in the tenant named lab. This can happen if the "
        "application has not been installed by the administrator of the tenant or consented to by any user in the "
        f"tenant. You might have sent your authentication request to the wrong tenant. Client: {principal.client_id}."
    )
