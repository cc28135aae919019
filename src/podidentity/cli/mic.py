"""`podidentity mic`: upstream's flags and environment to MIC's settings."""

import socket
from collections.abc import Coroutine, Mapping
from typing import Any

from podidentity.cli.daemon import DaemonCommand, forces_namespaces, user_agent
from podidentity.cli.flags import COMMON, COMPATIBILITY, Flag, Flags
from podidentity.core.model.policy import ConditionLevel
from podidentity.errors import ConfigurationError, UsageError
from podidentity.mic.settings import Settings

TABLE = (
    Flag("kubeconfig", "text", "", "Path of a kubeconfig; empty: the pod's service account."),
    Flag("cloudconfig", "text", "", "Path of azure.json; empty: environment variables."),
    Flag("forceNamespaced", "switch", "false", "Pods, bindings and identities must share a namespace."),
    Flag("syncRetryDuration", "duration", "1h", "Plan everything again this often."),
    Flag("leader-election-instance", "text", "", "Name of this candidate; empty: the host name."),
    Flag("leader-election-namespace", "text", "default", "Namespace of the lock."),
    Flag("leader-election-name", "text", "aad-pod-identity-mic", "Name of the lock."),
    Flag("leader-election-duration", "duration", "15s", "How long a leader's promise lasts."),
    Flag("http-probe-port", "number", "8080", "Port of /healthz and /readyz."),
    Flag("prometheus-port", "number", "8888", "Port of /metrics."),
    Flag("enableScaleFeatures", "switch", "true", "Accepted for existing manifests.", effect=False),
    Flag("createDeleteBatch", "number", "20", "Assigned identities that are written at the same time."),
    Flag("clientQps", "number", "0", "Requests a second to Kubernetes; 0: the server sets the pace."),
    Flag("immutable-user-msis", "text", "", "Client IDs, comma-separated, that are never unassigned."),
    Flag("config-map-name", "text", "aad-pod-identity-config", "ConfigMap in which MIC records what it assigned."),
    Flag("type-upgrade-status-key", "text", "type-upgrade-status", "Key under which a rewrite is recorded there."),
    Flag(
        "enable-type-upgrade",
        "switch",
        "true",
        "Given explicitly: rewrite stored objects to today's spelling, once. Both spellings are always read.",
    ),
    Flag("update-user-msi-max-retry", "number", "2", "Accepted: each identity is retried by itself.", effect=False),
    Flag("update-user-msi-retry-interval", "duration", "1s", "Accepted for existing manifests.", effect=False),
    Flag("identity-assignment-reconcile-interval", "duration", "3m", "Put back what Azure lost this often."),
    Flag(
        "namespace-allow-list",
        "switch",
        "false",
        "A binding takes effect only if its namespace's annotation podidentity.io/allowed-identities covers the "
        "identity's resource ID. MIC needs the right to list and watch namespaces.",
        is_new=True,
    ),
    Flag(
        "assign-on",
        "text",
        "pod",
        "When an identity goes on a scale set: with the first pod that uses it, or with its binding (pod, binding).",
        is_new=True,
    ),
    Flag(
        "unassign-delay",
        "duration",
        "0",
        "How long an identity stays where it is after its last pod. A restart of MIC begins the delay anew.",
        is_new=True,
    ),
    Flag(
        "assigned-identities",
        "text",
        "write",
        "AzureAssignedIdentity objects, for those who read them: write, or off. NMI goes by them only where its role "
        "does not let it decide by itself.",
        is_new=True,
    ),
    Flag(
        "conditions",
        "text",
        "problems",
        "Which conditions are written on AzureIdentity and AzureIdentityBinding (problems, all, off). Each write makes "
        "a new version of the object.",
        is_new=True,
    ),
    Flag(
        "uninstall",
        "switch",
        "false",
        "Take recorded identities off machines, then all assigned identities and their finalizers away, and exit. "
        "While a MIC is still there, no MIC leads for a minute afterwards.",
        is_new=True,
    ),
    Flag(
        "uninstall-deployment",
        "text",
        "",
        "With --uninstall: scale this Deployment in MIC's namespace down first; empty: none.",
        is_new=True,
    ),
    *COMMON,
    *COMPATIBILITY,
)

SHORTEST_SECONDS = 0.001
"""Of an interval: upstream's tickers panic with 0 and less."""
SHORTEST_LEASE_SECONDS = 1.0
"""A lock is written in whole seconds."""


def settings_of(flags: Flags, environ: Mapping[str, str]) -> Settings:
    """Check flags and environment. Raises ConfigurationError."""
    namespace = environ.get("MIC_POD_NAMESPACE", "")
    if not namespace and not flags.switch("uninstall"):
        raise ConfigurationError("MIC_POD_NAMESPACE is not set; set it to the namespace in which MIC runs")
    if flags.number("createDeleteBatch") < 1:
        raise UsageError("--createDeleteBatch: less than 1 cannot be written at a time; give 1 or more")
    return Settings(
        kubeconfig=flags.text("kubeconfig"),
        cloud_config=flags.text("cloudconfig"),
        force_namespaced=forces_namespaces(flags, environ),
        sync_seconds=flags.seconds("syncRetryDuration", SHORTEST_SECONDS),
        reconcile_seconds=flags.seconds("identity-assignment-reconcile-interval", SHORTEST_SECONDS),
        leader_instance=flags.text("leader-election-instance") or socket.gethostname(),
        leader_namespace=flags.text("leader-election-namespace"),
        leader_name=flags.text("leader-election-name"),
        leader_seconds=flags.seconds("leader-election-duration", SHORTEST_LEASE_SECONDS),
        probe_port=flags.port("http-probe-port"),
        prometheus_port=flags.port("prometheus-port"),
        requests_per_second=float(flags.number("clientQps")),
        batch=flags.number("createDeleteBatch"),
        assigned_identities=flags.one_of("assigned-identities", ("write", "off")) == "write",
        allow_list=flags.switch("namespace-allow-list"),
        assign_on_binding=flags.one_of("assign-on", ("pod", "binding")) == "binding",
        unassign_delay_seconds=flags.seconds("unassign-delay"),
        conditions=ConditionLevel(flags.one_of("conditions", tuple(ConditionLevel))),
        immutable_client_ids=frozenset(filter(None, map(str.strip, flags.text("immutable-user-msis").split(",")))),
        config_map=flags.text("config-map-name"),
        type_upgrade_key=flags.text("type-upgrade-status-key") if _upgrades(flags) else "",
        namespace=namespace or "default",
        user_agent=user_agent("mic", flags),
    )


def _upgrades(flags: Flags) -> bool:
    """Whether to rewrite: upstream's default is true, ours is to leave objects alone unless somebody asks."""
    return "enable-type-upgrade" in flags.names and flags.switch("enable-type-upgrade")


async def _uninstall(flags: Flags, settings: Settings) -> str:
    from podidentity.mic.commands import uninstall  # noqa: PLC0415  # --help and errors need none of it

    count = await uninstall.run(settings, flags.text("uninstall-deployment"))
    return f"{count} assigned identities were removed"


def _serve(_flags: Flags, settings: Settings) -> Coroutine[Any, Any, None]:
    from podidentity.mic import lifecycle  # noqa: PLC0415  # likewise

    return lifecycle.run(settings)


COMMAND = DaemonCommand(
    program="podidentity mic",
    summary="The managed identity controller: assigns identities to pods, VMs and scale sets.",
    example="podidentity mic --cloudconfig=/etc/kubernetes/azure.json",
    table=TABLE,
    settings_of=settings_of,
    serve=_serve,
    uninstall=_uninstall,
)
