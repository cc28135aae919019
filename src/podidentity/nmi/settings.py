"""What NMI can be told, once, at its start. Made from flags and environment by `cli.nmi`; read by `daemon`."""

from dataclasses import dataclass

from podidentity.core.sources import PUBLIC_LOGIN

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

    redirect: bool = True
    """Whether this daemon intercepts. Without, something else must, and direct connections are answered."""

    redirect_check_seconds: float = 60.0
    anti_spoof: bool = True
    accept_ebpf: bool = False
    """Whether the operator has seen that pods' packets pass netfilter, whatever eBPF programs there are."""

    managed_mode: bool = False
    """Identities come from bindings directly, without MIC; needs `force_namespaced`."""

    force_namespaced: bool = False
    namespace_allow_list: bool = False
    """In managed mode, an identity serves only when its namespace is allowed it; else MIC sees to that."""

    mic_namespace: str = "default"
    block_instance_metadata: bool = False
    metadata_header_required: bool = True

    wait_known_seconds: float = 10.0
    """How long a request waits for the API server to know its pod's address: a kubelet that failed to tell tries again
    every 10 s, and under load pods ask before it has told at all."""

    wait_created_seconds: float = 80.0
    """How long a request waits for an assigned identity to appear (upstream: 16 attempts of 5 s)."""

    wait_assigned_seconds: float = 20.0
    """How much longer, once it has appeared, until it is on the node (upstream: 4 attempts of 5 s)."""

    retry_after_header: bool = False
    """Answer 503 with Retry-After in place of 404 when the wait was in vain."""

    token_cache: bool = True
    host_token: bool = True
    secret_namespaces: frozenset[str] = frozenset()
    logins: frozenset[str] = frozenset({PUBLIC_LOGIN})
    """Where service principals' tokens may be asked for: known clouds, and the one that is configured."""

    startup_taint: str = ""
    """Key of the taint that is taken off the node once its pods are intercepted; empty: none."""

    user_agent: str = "podidentity-nmi"
    log_format: str = "text"
    kubeconfig: str = ""
    """Path of a kubeconfig; empty: the service account of the pod this runs in."""
