"""`podidentity broker`: flags and environment to settings, then the daemon.

The table is the single source of the parser, of `--help` and of docs/reference/flags.md.
"""

from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any

from podidentity.azure.clouds import find_cloud
from podidentity.broker.settings import TOKEN_FILE, Settings
from podidentity.cli.daemon import DaemonCommand, user_agent
from podidentity.cli.flags import COMMON, Flag, Flags
from podidentity.core.exchange.callers import AUDIENCE
from podidentity.core.model.federation import GUID
from podidentity.errors import ConfigurationError, UsageError

TABLE = (
    Flag("tenant-id", "text", "", "Tenant of the identities (else AZURE_TENANT_ID)."),
    Flag(
        "cloud",
        "text",
        "",
        "Azure cloud, such as AzureChinaCloud (else AZURE_ENVIRONMENT). AZURE_AUTHORITY_HOST overrides where its Entra "
        "ID answers.",
    ),
    Flag(
        "token-file",
        "text",
        str(TOKEN_FILE),
        "The broker's own projected token, of audience api://AzureADTokenExchange.",
    ),
    Flag("audience", "text", AUDIENCE, "Audience of the tokens that callers send."),
    Flag("allowed-identities", "list", "", "Client IDs that this broker gives tokens of, comma-separated; empty: all."),
    Flag(
        "accept-unbound-tokens", "switch", "false", "Accept tokens bound to no pod, such as `kubectl create token`'s."
    ),
    Flag(
        "nmi-service-accounts",
        "list",
        "",
        "NMI's service accounts, as namespace/name, comma-separated: each may ask for tokens of its own node's pods.",
    ),
    Flag("namespace", "text", "", "The broker's own namespace (else POD_NAMESPACE)."),
    Flag("name", "text", "podidentity-broker", "Name of its Service and service account, and of its CA with -ca."),
    Flag("server-names", "list", "", "Further DNS names of the serving certificate, comma-separated."),
    Flag(
        "bundle-namespaces",
        "list",
        "",
        "Namespaces in which the ConfigMap with the CA is kept, besides its own, comma-separated.",
    ),
    Flag("listen-address", "text", "", "Address to serve on; empty: all."),
    Flag("port", "number", "8443", "Port of the token proxy (HTTPS)."),
    Flag("http-probe-port", "number", "8080", "Port of /healthz and /readyz."),
    Flag("prometheus-port", "number", "9090", "Port of /metrics."),
    Flag("drain", "duration", "10s", "How long it goes on answering when it is told to stop."),
    Flag("kubeconfig", "text", "", "Kubeconfig to use instead of the pod's own service account."),
    *COMMON,
)


def settings_of(options: Flags, environ: Mapping[str, str]) -> Settings:
    """Check flags and environment. Raises `UsageError` or `ConfigurationError`."""
    tenant = (options.text("tenant-id") or environ.get("AZURE_TENANT_ID", "")).lower()
    if GUID.fullmatch(tenant) is None:
        raise UsageError(
            f'--tenant-id: "{tenant}" is no tenant ID; give the ID of the tenant that the identities are in'
        )
    namespace = options.text("namespace") or environ.get("POD_NAMESPACE", "")
    if not namespace:
        raise UsageError("--namespace: the broker does not know its own namespace; give it, or set POD_NAMESPACE")
    return Settings(
        tenant_id=tenant,
        authority=_authority(options, environ),
        token_file=Path(options.text("token-file")),
        audience=options.text("audience"),
        identities=frozenset(map(_identity, options.list("allowed-identities"))),
        unbound_tokens=options.switch("accept-unbound-tokens"),
        node_daemons=frozenset(map(_account, options.list("nmi-service-accounts"))),
        namespace=namespace,
        name=options.text("name"),
        server_names=tuple(options.list("server-names")),
        bundle_namespaces=tuple(options.list("bundle-namespaces")),
        address=options.text("listen-address"),
        port=options.port("port"),
        probe_port=options.port("http-probe-port"),
        prometheus_port=options.port("prometheus-port"),
        drain_seconds=options.seconds("drain"),
        kubeconfig=options.text("kubeconfig"),
        log_format=options.text("log-format"),
        user_agent=user_agent("broker", options),
    )


def _authority(options: Flags, environ: Mapping[str, str]) -> str:
    """Return where Entra ID answers. Its answers decide who gets tokens: only https will do."""
    name = options.text("cloud") or environ.get("AZURE_ENVIRONMENT", "")
    cloud = find_cloud(name, environ.get("AZURE_ENVIRONMENT_FILEPATH", ""))
    authority = (environ.get("AZURE_AUTHORITY_HOST", "") or cloud.login).rstrip("/")
    if not authority.lower().startswith("https://"):
        raise ConfigurationError(f"the broker's Entra ID is {authority}; tokens are asked for with https:// alone")
    return authority


def _account(text: str) -> str:
    namespace, slash, name = text.partition("/")
    if not (namespace and slash and name) or "/" in name:
        raise UsageError(f'--nmi-service-accounts: "{text}" is no service account; write namespace/name')
    return text


def _identity(text: str) -> str:
    client_id = text.lower()
    if GUID.fullmatch(client_id) is None:
        raise UsageError(f'--allowed-identities: "{text}" is no client ID; give IDs, separated by commas')
    return client_id


def _serve(_flags: Flags, settings: Settings) -> Coroutine[Any, Any, None]:
    from podidentity.broker import lifecycle  # noqa: PLC0415  # --help and errors need none of it

    return lifecycle.run(settings)


COMMAND = DaemonCommand(
    program="podidentity broker",
    summary="The broker: exchanges pods' service account tokens for tokens of Azure identities, on any Kubernetes. "
    "A Deployment runs it; it needs no privileges. Azure's SDKs reach it through AZURE_KUBERNETES_TOKEN_PROXY.",
    example="podidentity broker --tenant-id=11111111-2222-3333-4444-555555555555 --namespace=podidentity-broker",
    table=TABLE,
    settings_of=settings_of,
    serve=_serve,
)
