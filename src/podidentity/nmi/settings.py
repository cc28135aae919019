"""The settings of NMI, fixed at its start. Names follow upstream's flags where there is one."""

from dataclasses import dataclass
from pathlib import Path

from podidentity.core.tokens.sources import PUBLIC_LOGIN

STANDARD = "standard"
MANAGED = "managed"


@dataclass(frozen=True, slots=True)
class Settings:
    """Checked settings; names follow upstream's flags where there is one."""

    node: str
    """The Kubernetes node this daemon runs on; only its pods are answered."""

    listen_address: str = ""
    """IPv4 address that pods are sent to; empty: the address from which the node reaches IMDS."""

    port: int = 2579
    metadata_address: str = "169.254.169.254"
    metadata_port: int = 80
    probe_port: int = 8080
    prometheus_port: int = 9090
    metrics_details: bool = False
    """Whether /metrics shows namespaces and resources to everybody, not only to the node's own programs."""

    redirect: bool = True
    """Whether this daemon intercepts. Without, something else must, and direct connections are answered."""

    redirect_check_seconds: float = 60.0
    anti_spoof: bool = True
    accept_ebpf: bool = False
    """Whether the operator has seen that pods' packets pass netfilter, whatever eBPF programs there are."""

    accept_cards: bool = False
    """Likewise, that IMDS does not answer pods' own network cards."""

    managed_mode: bool = False
    """Identities come from bindings directly, without MIC; needs `force_namespaced`."""

    force_namespaced: bool = False
    namespace_allow_list: bool = False
    """In managed mode, an identity serves only when its namespace is allowed it; else MIC sees to that."""

    mic_namespace: str = "default"
    block_wireserver: bool = False
    """Whether pods' packets to Azure's WireServer are dropped, except for names."""

    block_instance_metadata: bool = False
    metadata_header_required: bool = True

    wait_known_seconds: float = 25.0
    """How long a request waits for the API server to know its pod's address: a kubelet whose report failed tries again
    every 10 s, and under load pods ask before it has reported at all. Two such tries, and some time for the second."""

    wait_created_seconds: float = 80.0
    """How long a request waits for an assigned identity to appear (upstream: 16 attempts of 5 s)."""

    wait_assigned_seconds: float = 20.0
    """How much longer, once it has appeared, until it is on the node (upstream: 4 attempts of 5 s)."""

    retry_after_header: bool = False
    """Answer 503 with Retry-After in place of 404 when the wait was in vain."""

    token_cache: bool = True
    host_token: bool = True
    """Whether root programs of the node get pods' tokens at all."""

    host_token_socket: str = ""
    """Path of the Unix socket on which they ask; empty: none."""

    host_token_loopback: bool = False
    """Whether they may also ask on loopback, as the secrets-store CSI driver does."""

    broker: str = ""
    """Address of the broker, `https://HOST[:PORT]`; empty: there is none."""

    broker_ca: Path = Path("/var/run/secrets/podidentity/broker/ca.crt")
    """The broker's CA, PEM."""

    broker_token: Path = Path("/var/run/secrets/podidentity/token/token")
    """NMI's own token for the broker, which the kubelet renews."""

    token_file_port: int = 0
    """Port of the token-file door on `listen_address`; 0: it is not served."""

    token_file_ipv6_address: str = ""
    """The node's IPv6 address, at which the door is served as well; empty: Kubernetes knows the node by IPv4."""

    handover_socket: str = ""
    """Path of the Unix socket on which NMIs of this node hand over to each other; empty: none."""

    secret_namespaces: frozenset[str] = frozenset()
    logins: frozenset[str] = frozenset({PUBLIC_LOGIN})
    """Where service principals' tokens may be asked for: known clouds, and the one that is configured."""

    startup_taint: str = ""
    """Key of the taint that is taken off the node once its pods are intercepted; empty: none."""

    user_agent: str = "podidentity-nmi"
    log_format: str = "text"
    kubeconfig: str = ""
    """Path of a kubeconfig; empty: the service account of the pod this runs in."""
