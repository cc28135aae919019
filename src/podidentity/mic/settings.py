"""What MIC can be told, once, at its start. Made from flags and environment by `cli.mic`; read by `daemon`."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Settings:
    """Checked settings; names follow upstream's flags where there is one. Durations are seconds."""

    kubeconfig: str = ""
    cloud_config: str = ""
    """Path of azure.json; empty: the environment."""

    force_namespaced: bool = False
    sync_seconds: float = 3600.0
    """Everything is planned again this often, whatever happened."""

    reconcile_seconds: float = 180.0
    """Each target is read again this often, so that what Azure lost is put back."""

    leader_instance: str = ""
    leader_namespace: str = "default"
    leader_name: str = "aad-pod-identity-mic"
    leader_seconds: float = 15.0
    probe_port: int = 8080
    prometheus_port: int = 8888
    requests_per_second: float = 0.0
    batch: int = 20
    """Writes of assigned identities under way at the same time."""

    allow_list: bool = False
    assign_on_binding: bool = False
    unassign_delay_seconds: float = 0.0
    immutable_client_ids: frozenset[str] = frozenset()
    type_upgrade_key: str = ""
    """Key of the ConfigMap that says that stored objects were rewritten; empty: they are not."""

    config_map: str = "aad-pod-identity-config"
    namespace: str = "default"
    """Where MIC runs (MIC_POD_NAMESPACE); its ConfigMap lives there."""

    user_agent: str = "podidentity-mic"
