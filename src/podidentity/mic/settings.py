"""MIC's settings: what its flags and environment say, checked, fixed for as long as it runs."""

from dataclasses import dataclass

from podidentity.core.model.policy import ConditionLevel


@dataclass(frozen=True, slots=True)
class Settings:
    """Checked settings, named for upstream's flags where there is one."""

    kubeconfig: str = ""
    cloud_config: str = ""
    """Path of azure.json; empty: the environment."""

    force_namespaced: bool = False
    sync_seconds: float = 3600.0
    """The longest time between two full plans."""

    reconcile_seconds: float = 180.0
    """How often each target is read again, so that identities that Azure lost are assigned again."""

    leader_instance: str = ""
    leader_namespace: str = "default"
    leader_name: str = "aad-pod-identity-mic"
    leader_seconds: float = 15.0
    probe_port: int = 8080
    prometheus_port: int = 8888
    requests_per_second: float = 0.0
    """The most requests to Kubernetes, the lock's apart; 0: no limit."""

    batch: int = 20
    """Writes of assigned identities under way at the same time."""

    assigned_identities: bool = True
    """Whether AzureAssignedIdentity objects are written, for those who read them; NMI does without."""

    allow_list: bool = False
    assign_on_binding: bool = False
    unassign_delay_seconds: float = 0.0
    """How long an identity that nothing uses any more stays on its target."""

    conditions: ConditionLevel = ConditionLevel.PROBLEMS
    """Which conditions are written on AzureIdentity and AzureIdentityBinding."""

    immutable_client_ids: frozenset[str] = frozenset()
    type_upgrade_key: str = ""
    """The ConfigMap's key that records that stored objects were rewritten; empty: they are not to be."""

    config_map: str = "aad-pod-identity-config"
    namespace: str = "default"
    """Where MIC runs (MIC_POD_NAMESPACE); its ConfigMap lives there."""

    user_agent: str = "podidentity-mic"
