"""What the webhook is configured with, and the names of labels and annotations."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from podidentity.core.model.federation import EXCHANGE_AUDIENCE, PROXY_AUDIENCE

PREFIX = "azure.workload.identity/"
USE_LABEL = f"{PREFIX}use"
CLIENT_ID = f"{PREFIX}client-id"
TENANT_ID = f"{PREFIX}tenant-id"
EXPIRATION = f"{PREFIX}service-account-token-expiration"
SKIP_CONTAINERS = f"{PREFIX}skip-containers"
SIDECAR = f"{PREFIX}inject-proxy-sidecar"
SIDECAR_PORT = f"{PREFIX}proxy-sidecar-port"
DOOR = "podidentity.io/door"
"""On a pod: which door it uses, one of `Door`; takes precedence over azure-workload-identity's annotations."""
TOKEN_PATH = "podidentity.io/token-path"  # noqa: S105  # an annotation
"""On a pod: `v1.5` puts the token where azure-workload-identity had it up to v1.5, for programs that rely on it."""
OLD_TOKEN_PATH = "v1.5"  # noqa: S105  # a version

EXPIRATION_SECONDS = 3600
"""By default; also the least."""
LONGEST_EXPIRATION_SECONDS = 86_400


class Door(StrEnum):
    """The one way in which a pod gets its tokens."""

    DIRECT = "direct"
    """The SDK exchanges the pod's projected token at Entra ID: the identity trusts the pod's service account."""
    PROXY = "proxy"
    """The SDK sends it to the broker instead; it needs a switch in the program (`enable_azure_proxy` and the like)."""
    TOKEN_FILE = "token-file"  # noqa: S105  # a door
    """Any program that uses a managed identity: it asks NMI on its node, and proves itself with the token's file."""


@dataclass(frozen=True, slots=True)
class TrustBundle:
    """Where a pod finds the CA of the token proxy: exactly one of a text, a ConfigMap, or a ClusterTrustBundle.

    `config_map` is one of the pod's own namespace, with the key `ca.crt`. `signer` names ClusterTrustBundles, of which
    `labels` selects some.
    """

    text: str = field(default="", repr=False)
    config_map: str = ""
    signer: str = ""
    labels: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TokenProxy:
    """The broker as SDKs reach it. `server_name` may be empty: then it is the host of `url`."""

    url: str
    trust: TrustBundle
    server_name: str = ""
    audience: str = PROXY_AUDIENCE
    suffix: str = "identity-binding"
    """Of the annotation `azure.workload.identity/use-SUFFIX` by which a pod asks for it."""


@dataclass(frozen=True, slots=True)
class TokenFileDoor:
    """NMI's door on each node: its port on the node's own address, and the audience of pods' tokens for the broker.

    `is_ipv6`: Kubernetes knows nodes by their IPv6 addresses, which stand in brackets in a URL (RFC 3986, 3.2.2).
    """

    port: int
    audience: str = PROXY_AUDIENCE
    is_ipv6: bool = False


@dataclass(frozen=True, slots=True)
class Rules:
    """The webhook's settings. `authority_host` has a slash at its end. A door that is None is not offered."""

    tenant_id: str
    authority_host: str = "https://login.microsoftonline.com/"
    audience: str = EXCHANGE_AUDIENCE
    proxy: TokenProxy | None = None
    token_file: TokenFileDoor | None = None
