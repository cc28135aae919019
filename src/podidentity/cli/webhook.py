"""`podidentity webhook`: azure-workload-identity's flags and environment to settings, then the daemon."""

import base64
import binascii
import json
import ssl
from collections.abc import Coroutine, Mapping
from typing import Any
from urllib.parse import urlsplit

from podidentity.azure.clouds import find_cloud
from podidentity.cli.daemon import DaemonCommand, user_agent
from podidentity.cli.flags import COMMON, Flag, Flags
from podidentity.core.exchange.callers import AUDIENCE
from podidentity.core.injection.rules import Rules, TokenFileDoor, TokenProxy, TrustBundle
from podidentity.core.model.federation import EXCHANGE_AUDIENCE
from podidentity.errors import ConfigurationError, UsageError
from podidentity.webhook.settings import Settings

_PLACEHOLDER = "00000000-0000-0000-0000-000000000000"
"""The tenant in deploy/webhook/webhook.yaml. Entra ID says in each pod that it does not know it."""
_TLS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}

TABLE = (
    Flag("audience", "text", EXCHANGE_AUDIENCE, "Audience of the tokens of pods that go to Entra ID directly."),
    Flag("tls-min-version", "text", "1.3", "Oldest version of TLS that is spoken: 1.2 or 1.3."),
    Flag("health-addr", "text", ":9440", "Address of /healthz and /readyz, as :PORT."),
    Flag("metrics-addr", "text", ":8095", "Address of /metrics, as :PORT."),
    Flag(
        "custom-token-endpoint-annotation-suffix",
        "text",
        "",
        "SUFFIX of the annotation azure.workload.identity/use-SUFFIX by which pods ask for the token proxy.",
    ),
    Flag("custom-token-endpoint-audience", "text", "", "Audience of their tokens."),
    Flag(
        "token-file-port",
        "number",
        "0",
        "Port of the token-file door on each node, as NMI has it; 0: not offered.",
        is_new=True,
    ),
    Flag(
        "token-file-ip-family",
        "text",
        "auto",
        "Family of the nodes' addresses (status.hostIP): ipv4 or ipv6; auto: that of KUBERNETES_SERVICE_HOST.",
        is_new=True,
    ),
    Flag("port", "number", "9443", "Port of the webhook (HTTPS).", is_new=True),
    Flag("namespace", "text", "", "The webhook's own namespace (else POD_NAMESPACE).", is_new=True),
    Flag("service", "text", "azure-wi-webhook-webhook-service", "Name of its Service.", is_new=True),
    Flag("secret", "text", "azure-wi-webhook-server-cert", "Secret in which its CA is kept.", is_new=True),
    Flag(
        "configuration",
        "text",
        "azure-wi-webhook-mutating-webhook-configuration",
        "MutatingWebhookConfiguration whose caBundle it keeps.",
        is_new=True,
    ),
    Flag("drain", "duration", "5s", "How long it goes on answering when it is told to stop.", is_new=True),
    Flag("kubeconfig", "text", "", "Kubeconfig to use instead of the pod's own service account."),
    Flag("webhook-cert-dir", "text", "/certs", "Certificates stay in memory.", effect=False),
    Flag("disable-cert-rotation", "switch", "false", "It makes its certificates itself.", effect=False),
    Flag("metrics-backend", "text", "prometheus", "There is no other.", effect=False),
    Flag("log-level", "text", "", "See --v.", effect=False),
    *COMMON,
)


def settings_of(options: Flags, environ: Mapping[str, str]) -> Settings:
    """Check flags and environment. Raises `UsageError` or `ConfigurationError`."""
    namespace = options.text("namespace") or environ.get("POD_NAMESPACE", "")
    if not namespace:
        raise UsageError("--namespace: the webhook does not know its own namespace; give it, or set POD_NAMESPACE")
    tenant = environ.get("AZURE_TENANT_ID", "").strip()
    if not tenant:
        raise ConfigurationError("AZURE_TENANT_ID is not set; set it to the tenant of the cluster's identities")
    if tenant == _PLACEHOLDER:
        raise ConfigurationError("AZURE_TENANT_ID is the manifest's own; set it to the tenant of the identities")
    cloud = find_cloud(environ.get("AZURE_ENVIRONMENT", ""), environ.get("AZURE_ENVIRONMENT_FILEPATH", ""))
    proxy = _proxy(options, environ)
    return Settings(
        Rules(tenant, f"{cloud.login}/", options.text("audience"), proxy, _token_file(options, environ, proxy)),
        namespace,
        service=options.text("service"),
        secret=options.text("secret"),
        configuration=options.text("configuration"),
        minimum_tls=_TLS[options.one_of("tls-min-version", tuple(_TLS))],
        port=options.port("port"),
        probe_port=_port(options, "health-addr"),
        prometheus_port=_port(options, "metrics-addr"),
        drain_seconds=options.seconds("drain"),
        kubeconfig=options.text("kubeconfig"),
        user_agent=user_agent("webhook", options),
    )


def _proxy(options: Flags, environ: Mapping[str, str]) -> TokenProxy | None:
    """Return the token proxy that pods are sent to; None where none is configured."""
    suffix, audience = (options.text(f"custom-token-endpoint-{name}") for name in ("annotation-suffix", "audience"))
    url = environ.get("AZURE_KUBERNETES_TOKEN_PROXY", "").strip()
    if bool(suffix) != bool(audience):
        raise UsageError(
            "--custom-token-endpoint-annotation-suffix and --custom-token-endpoint-audience belong together; give both"
        )
    if not url:
        if suffix:
            raise ConfigurationError("AZURE_KUBERNETES_TOKEN_PROXY is not set; set it to the broker's https:// address")
        return None
    if not _is_proxy_address(url):
        raise ConfigurationError(
            f'AZURE_KUBERNETES_TOKEN_PROXY: "{url}" is no https:// address without user, query and fragment; correct it'
        )
    if audience == options.text("audience"):
        raise UsageError(
            "--custom-token-endpoint-audience: it must not be --audience; Entra ID would take those tokens"
        )
    proxy = TokenProxy(url, _trust(environ), environ.get("AZURE_KUBERNETES_SNI_NAME", "").strip())
    if not suffix:
        return proxy
    return TokenProxy(proxy.url, proxy.trust, proxy.server_name, audience, suffix)


def _is_proxy_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:  # brackets without an address, a port that is none
        return False
    odd_parts = (parts.username, parts.query, parts.fragment)
    return parts.scheme == "https" and bool(parts.hostname) and port != 0 and not any(odd_parts)


def _token_file(options: Flags, environ: Mapping[str, str], proxy: TokenProxy | None) -> TokenFileDoor | None:
    """Return NMI's token-file door; None where it is not offered.

    A pod is admitted before it has a node, so the family of the node's address is the cluster's: the first of its
    Services, of which the API server's is one.
    """
    family = options.one_of("token-file-ip-family", ("auto", "ipv4", "ipv6"))
    if not options.number("token-file-port"):
        return None
    is_ipv6 = family == "ipv6" or (family == "auto" and ":" in environ.get("KUBERNETES_SERVICE_HOST", ""))
    return TokenFileDoor(options.port("token-file-port"), proxy.audience if proxy else AUDIENCE, is_ipv6)


def _trust(environ: Mapping[str, str]) -> TrustBundle:
    """Return where pods find the proxy's CA: exactly one of the three variables."""
    names = ("AZURE_KUBERNETES_CA_DATA", "AZURE_KUBERNETES_CA_CONFIGMAP_NAME", "AZURE_KUBERNETES_CA_CTB_SIGNER_NAME")
    text, config_map, signer = (environ.get(name, "").strip() for name in names)
    if sum(map(bool, (text, config_map, signer))) != 1:
        raise ConfigurationError(f"the token proxy needs one source of its CA; set exactly one of {', '.join(names)}")
    labels = environ.get("AZURE_KUBERNETES_CA_CTB_LABEL_SELECTOR", "").strip()
    try:
        selector = json.loads(labels) if labels else {}
    except ValueError:
        selector = None
    if not isinstance(selector, dict):
        raise ConfigurationError("AZURE_KUBERNETES_CA_CTB_LABEL_SELECTOR is no JSON object; write a label selector")
    return TrustBundle(_pem(text), config_map, signer, selector)


def _pem(text: str) -> str:
    """Return the certificates of AZURE_KUBERNETES_CA_DATA, which may be base64."""
    if not text:
        return text
    try:
        pem = text if text.startswith("-----BEGIN") else base64.b64decode(text, validate=True).decode("ascii")
        ssl.create_default_context(cadata=pem)
    except (binascii.Error, ValueError, ssl.SSLError):
        raise ConfigurationError("AZURE_KUBERNETES_CA_DATA holds no certificate; give PEM, or PEM in base64") from None
    return pem


def _port(options: Flags, name: str) -> int:
    port = options.text(name).rpartition(":")[2]
    if not (port.isascii() and port.isdecimal() and 0 < int(port) < 1 << 16):
        raise UsageError(f'--{name}: "{options.text(name)}" names no port; write for example :9440')
    return int(port)


def _serve(_flags: Flags, settings: Settings) -> Coroutine[Any, Any, None]:
    from podidentity.webhook import lifecycle  # noqa: PLC0415  # --help and errors need none of it

    return lifecycle.run(settings)


COMMAND = DaemonCommand(
    program="podidentity webhook",
    summary="The webhook: gives pods with the label azure.workload.identity/use the token, the variables and the "
    "volume that Azure's SDKs look for. A Deployment runs it in the place of azure-workload-identity's.",
    example="podidentity webhook --namespace=azure-workload-identity-system",
    table=TABLE,
    settings_of=settings_of,
    serve=_serve,
)
