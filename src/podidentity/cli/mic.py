"""`podidentity mic`: upstream's flags and environment to MIC's settings."""

import asyncio
import logging
import os
import socket
from collections.abc import Mapping, Sequence

from podidentity import __version__
from podidentity.cli import flags
from podidentity.cli.flags import Flag, Flags
from podidentity.errors import ConfigurationError, UsageError
from podidentity.mic.settings import Settings
from podidentity.serving import logs

_log = logging.getLogger(__name__)

PROGRAM = "podidentity mic"

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
        ours=True,
    ),
    Flag(
        "assign-on",
        "text",
        "pod",
        "When an identity goes on a scale set: with the first pod that uses it, or with its binding (pod, binding).",
        ours=True,
    ),
    Flag(
        "unassign-delay",
        "duration",
        "0",
        "How long an identity stays where it is after its last pod. A restart of MIC begins the delay anew.",
        ours=True,
    ),
    Flag(
        "uninstall",
        "switch",
        "false",
        "Take all assigned identities and their finalizers away and exit; no MIC leads for a minute afterwards.",
        ours=True,
    ),
    *flags.COMMON,
)

ASSIGN_ON = ("pod", "binding")
SHORTEST_SECONDS = 0.001
"""Of an interval: upstream's tickers panic with 0 and less."""
SHORTEST_LEASE_SECONDS = 1.0
"""A lock is written in whole seconds."""


def run(arguments: Sequence[str]) -> int:
    """Run MIC until it is told to stop."""
    given = flags.parse(PROGRAM, TABLE, arguments)
    if given.switch("help"):
        summary = "The managed identity controller: assigns identities to pods, VMs and scale sets."
        example = f"{PROGRAM} --cloudconfig=/etc/kubernetes/azure.json"
        print(flags.render_help(PROGRAM, summary, TABLE, example, flags.help_width()))
        return 0
    if given.switch("version"):
        print(f"{PROGRAM} {__version__}")
        return 0
    settings = settings_of(given, os.environ)
    logs.set_up(given.one_of("log-format", ("text", "json")), given.number("v"))
    if given.without_effect:
        _log.warning("these flags are accepted and have no effect: %s", ", ".join(given.without_effect))
    from podidentity.mic import daemon  # noqa: PLC0415  # --help needs none of it

    if given.switch("uninstall"):
        removed = asyncio.run(daemon.uninstall(settings))
        print(f"{removed} assigned identities were removed; delete MIC within a minute, or it will put them back")
        return 0
    import uvloop  # noqa: PLC0415  # a daemon's, not a command's

    uvloop.run(daemon.run(settings))
    return 0


def settings_of(given: Flags, environ: Mapping[str, str]) -> Settings:
    """Check flags and environment. Raises ConfigurationError."""
    namespace = environ.get("MIC_POD_NAMESPACE", "")
    if not namespace and not given.switch("uninstall"):
        raise ConfigurationError("MIC_POD_NAMESPACE is not set; set it to the namespace in which MIC runs")
    if given.text("assign-on") not in ASSIGN_ON:
        raise UsageError(f'flag --assign-on: "{given.text("assign-on")}" is neither pod nor binding')
    if given.number("createDeleteBatch") < 1:
        raise UsageError("flag --createDeleteBatch: at least 1 must be written at a time")
    agent = " ".join(filter(None, (f"podidentity-mic/{__version__}", given.text("custom-user-agent"))))
    return Settings(
        kubeconfig=given.text("kubeconfig"),
        cloud_config=given.text("cloudconfig"),
        force_namespaced=given.switch("forceNamespaced") or environ.get("FORCENAMESPACED", "").lower() == "true",
        sync_seconds=given.seconds("syncRetryDuration", SHORTEST_SECONDS),
        reconcile_seconds=given.seconds("identity-assignment-reconcile-interval", SHORTEST_SECONDS),
        leader_instance=given.text("leader-election-instance") or socket.gethostname(),
        leader_namespace=given.text("leader-election-namespace"),
        leader_name=given.text("leader-election-name"),
        leader_seconds=given.seconds("leader-election-duration", SHORTEST_LEASE_SECONDS),
        probe_port=given.port("http-probe-port"),
        prometheus_port=given.port("prometheus-port"),
        requests_per_second=float(given.number("clientQps")),
        batch=given.number("createDeleteBatch"),
        allow_list=given.switch("namespace-allow-list"),
        assign_on_binding=given.text("assign-on") == "binding",
        unassign_delay_seconds=given.seconds("unassign-delay"),
        immutable_client_ids=frozenset(filter(None, map(str.strip, given.text("immutable-user-msis").split(",")))),
        config_map=given.text("config-map-name"),
        type_upgrade_key=given.text("type-upgrade-status-key") if _upgrades(given) else "",
        namespace=namespace,
        user_agent=agent,
    )


def _upgrades(given: Flags) -> bool:
    """Whether to rewrite: upstream's default is true, ours is to leave objects alone unless somebody asks."""
    return "enable-type-upgrade" in given.given and given.switch("enable-type-upgrade")
