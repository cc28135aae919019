"""What the broker is configured with."""

from dataclasses import dataclass
from pathlib import Path

from podidentity.core.exchange.callers import AUDIENCE

TOKEN_FILE = Path("/var/run/secrets/azure/tokens/azure-identity-token")
"""Where azure-workload-identity has the projected token; ours is in the same place."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of one broker. IDs are lower-case; `authority` is `https://HOST` of the cloud's Entra ID.

    `identities` are the client IDs that it gives tokens of; empty means every one that callers may use. `node_daemons`
    are NMI's service accounts, as `namespace/name`.
    """

    tenant_id: str
    authority: str = "https://login.microsoftonline.com"
    token_file: Path = TOKEN_FILE
    audience: str = AUDIENCE
    identities: frozenset[str] = frozenset()
    unbound_tokens: bool = False
    node_daemons: frozenset[str] = frozenset()
    namespace: str = "podidentity-broker"
    name: str = "podidentity-broker"
    server_names: tuple[str, ...] = ()
    bundle_namespaces: tuple[str, ...] = ()
    address: str = ""
    port: int = 8443
    probe_port: int = 8080
    prometheus_port: int = 9090
    drain_seconds: float = 10.0
    kubeconfig: str = ""
    log_format: str = "text"
    user_agent: str = "podidentity-broker"
