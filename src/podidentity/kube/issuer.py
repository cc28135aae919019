"""What the API server says of itself as an issuer of service account tokens: its openid-configuration and its keys."""

from podidentity.core.report.issuers import CONFIGURATION_PATH, KEYS_PATH, IssuerDocuments
from podidentity.kube.api import Api


async def read_issuer(api: Api) -> IssuerDocuments:
    """Return both documents. Raises KubernetesError: ForbiddenError without system:service-account-issuer-discovery."""
    configuration = await api.document(CONFIGURATION_PATH, "get the issuer's openid-configuration")
    keys = await api.document(KEYS_PATH, "get the issuer's key set")
    return IssuerDocuments(configuration, keys)
