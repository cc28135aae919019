"""For which audiences Entra ID issues tokens: Azure's own services, and applications of the tenant."""

import re

from podidentity_lab.azure import answers
from podidentity_lab.azure.state import Principal, State

_OF_AZURE = re.compile(
    r"https://([a-z0-9-]+\.)*(azure\.com|azure\.net|windows\.net|microsoft\.com|azure\.us|usgovcloudapi\.net|"
    r"azure\.cn|chinacloudapi\.cn|azconfig\.io|azurecr\.io|opinsights\.azure\.com)(:443)?(/.*)?",
    re.IGNORECASE,
)
_GUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
EXCHANGE = "api://AzureADTokenExchange"


def check(state: State, principal: Principal, audience: str) -> None:
    """Refuse with 400 an audience that is neither a service of Azure nor an application of the tenant."""
    if not audience:
        message = "The request body must contain the following parameter: 'resource' or 'scope'."
        raise answers.entra(400, "invalid_request", 900144, message)
    if not is_known(state, audience):
        raise answers.entra(400, "invalid_resource", 500011, unknown_message(principal, audience))


def is_known(state: State, audience: str) -> bool:
    """Whether an audience is a service of Azure or an application of the tenant."""
    if _OF_AZURE.fullmatch(audience) or _GUID.fullmatch(audience) or audience.lower() == EXCHANGE.lower():
        return True
    return audience.startswith("api://") and state.principal_of(audience.removeprefix("api://").rstrip("/")) is not None


def unknown_message(principal: Principal, audience: str) -> str:
    """Return Entra ID's sentence for an audience that it does not know."""
    return (
        f"The resource principal named {audience} was not found in the tenant named lab. This can happen if the "
        "application has not been installed by the administrator of the tenant or consented to by any user in the "
        f"tenant. You might have sent your authentication request to the wrong tenant. Client: {principal.client_id}."
    )
