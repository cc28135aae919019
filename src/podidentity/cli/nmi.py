"""`podidentity nmi`: upstream's flags and environment to NMI's settings.

The table is the single source of the parser, of `--help` and of docs/reference/flags.md.
"""

import asyncio
import functools
import ipaddress
import logging
import socket
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from podidentity.azure import clouds
from podidentity.cli.daemon import DaemonCommand, Serve, forces_namespaces, user_agent
from podidentity.cli.flags import COMMON, COMPATIBILITY, Flag, Flags
from podidentity.core.model.addresses import canonical
from podidentity.errors import ConfigurationError, HostError, UsageError
from podidentity.nmi.adapters.redirect import Redirect, RedirectSettings
from podidentity.nmi.commands.uninstall import uninstall
from podidentity.nmi.settings import MANAGED, STANDARD, Settings

_log = logging.getLogger(__name__)

_OPEN_MESSAGE = (
    "The interception is removed: pods of this node reach the real IMDS again. "
    "Every pod here may now use every identity that is still on this machine, the machine's own included; "
    "take identities off it, or close it again with `podidentity nmi --uninstall --keep-guard`."
)
_GUARD_MESSAGE = (
    "The redirect is removed and the guard stays: pods of this node get no tokens and do not reach IMDS. "
    "`podidentity nmi --uninstall` removes the guard, too."
)
_KUBENET = "--network-plugin=kubenet"

DEFAULTS = Settings("")

TABLE = (
    Flag("node", "text", "", "Name of the Kubernetes node this runs on (else NODE_NAME, else the host's name)."),
    Flag("nmi-port", "number", "2579", "Port on which pods' requests are answered."),
    Flag(
        "nmi-listen-address",
        "text",
        "127.0.0.1",
        "IPv4 address that pods are sent to. The default and 0.0.0.0 mean the node's own: HOST_IP, else the address "
        "from which the node reaches IMDS.",
    ),
    Flag("metadata-ip", "text", "169.254.169.254", "Address of the Instance Metadata Service."),
    Flag("metadata-port", "number", "80", "Its port."),
    Flag("operation-mode", "text", STANDARD, "standard: MIC assigns identities; managed: bindings alone decide."),
    Flag("forceNamespaced", "switch", "false", "Pods use identities of their own namespace only (FORCENAMESPACED)."),
    Flag(
        "namespace-allow-list",
        "switch",
        "false",
        "Namespaces use only what their annotation podidentity.io/allowed-identities names. In standard mode give MIC "
        "the same.",
        is_new=True,
    ),
    Flag("MICNamespace", "text", "default", "Namespace of MIC, whose own requests go to IMDS."),
    Flag("block-instance-metadata", "switch", "false", "Answer 403 to requests for /metadata/instance."),
    Flag(
        "block-wireserver",
        "switch",
        "false",
        "Drop what pods send to Azure's WireServer, 168.63.129.16 on ports 80 and 32526.",
        is_new=True,
    ),
    Flag("metadata-header-required", "switch", "true", "Refuse requests without the header Metadata: true."),
    Flag("retry-attempts-for-created", "number", "16", "How many intervals to wait for an assigned identity."),
    Flag("retry-attempts-for-assigned", "number", "4", "How many more until it is on the node."),
    Flag("find-identity-retry-interval", "number", "5", "Length of that interval in seconds; nothing is polled."),
    Flag("set-retry-after-header", "switch", "false", "Answer 503 with Retry-After, not 404, after a wait in vain."),
    Flag("token-cache", "switch", "true", "Keep tokens, and refresh them before they expire.", is_new=True),
    Flag("host-token-endpoint", "switch", "true", "Serve /host/token to root programs of the node.", is_new=True),
    Flag(
        "host-token-socket",
        "text",
        "/run/podidentity/host-token.sock",
        "Unix socket on which it is served, where its directory exists.",
        is_new=True,
    ),
    Flag(
        "host-token-loopback",
        "text",
        "auto",
        "on: serve it on 127.0.0.1 too, as the secrets-store CSI driver asks; auto: only where there is no socket.",
        is_new=True,
    ),
    Flag(
        "handover-socket",
        "text",
        "/run/podidentity/nmi.sock",
        "Unix socket on which NMI hands over to its successor, where its directory exists.",
        is_new=True,
    ),
    Flag(
        "secret-namespaces",
        "list",
        "",
        "Other namespaces than its own from which an AzureIdentity may name a Secret, comma-separated.",
        is_new=True,
    ),
    Flag("redirect", "text", "nft", "nft: intercept on this host; none: something else sends pods here.", is_new=True),
    Flag(
        "anti-spoof",
        "text",
        "auto",
        "auto: pods ask from their own address only, proven by their interface or bridge port; off: not checked.",
        is_new=True,
    ),
    Flag(
        "ebpf-datapath",
        "text",
        "refuse",
        "refuse: not ready where eBPF may carry pods' packets past netfilter; accept: it was checked that it does not.",
        is_new=True,
    ),
    Flag(
        "pod-network-cards",
        "text",
        "refuse",
        "refuse: not ready where a pod has a network card or virtual function of its own; accept: it was checked.",
        is_new=True,
    ),
    Flag("ipt-update-interval-sec", "number", "60", "How often the redirect is checked at least, in seconds."),
    Flag(
        "broker",
        "text",
        "",
        "Address of the broker (https://HOST) for identities with the annotation podidentity.io/token-source: broker.",
        is_new=True,
    ),
    Flag("broker-ca", "text", str(DEFAULTS.broker_ca), "File with the broker's CA.", is_new=True),
    Flag("broker-token", "text", str(DEFAULTS.broker_token), "File with NMI's own token for the broker.", is_new=True),
    Flag(
        "token-file-port",
        "number",
        "0",
        "Port of the token-file door, where pods prove themselves with their own token; needs --broker. 0: none.",
        is_new=True,
    ),
    Flag("startup-taint", "text", "", "Taint (its key) to take off the node once pods are intercepted.", is_new=True),
    Flag("uninstall", "switch", "false", "Remove the interception from this host and exit.", is_new=True),
    Flag(
        "keep-guard",
        "switch",
        "false",
        "With --uninstall: leave pods cut off from IMDS; only the redirect goes.",
        is_new=True,
    ),
    Flag("http-probe-port", "number", "8080", "Port of /healthz and /readyz."),
    Flag("prometheus-port", "number", "9090", "Port of /metrics."),
    Flag(
        "metrics-details",
        "text",
        "node",
        "Who is told namespaces and resources by /metrics: node, programs of this node; all, every pod that asks.",
        is_new=True,
    ),
    Flag("allow-network-plugin-kubenet", "switch", "false", "Start although the node uses kubenet."),
    Flag("kubelet-config", "text", "/etc/default/kubelet", "File in which kubenet is looked for."),
    Flag("enableScaleFeatures", "switch", "true", "NMI scales without it.", effect=False),
    Flag("enable-conntrack-deletion", "switch", "true", "Old connections are always ended.", effect=False),
    *COMMON,
    *COMPATIBILITY,
)


def close_off(flags: Flags) -> Serve[Settings] | None:
    """Put the guard up with what can be read of the command line. Return a daemon that knows whether it stands.

    A node whose NMI refuses to start is closed to its pods all the same; without a usable --metadata-ip, the real
    address of IMDS is closed off.
    """
    if flags.text("redirect") == "none":
        return None
    try:
        address = _address("--metadata-ip", flags.text("metadata-ip"))
    except UsageError:
        address = Settings("").metadata_address
    settings = RedirectSettings(address, 0, "", 0, block_wireserver=flags.switch("block-wireserver"))
    logging.disable()  # where a host lacks something, the daemon does the same again, and reports what it finds
    try:
        is_complete = asyncio.run(Redirect(settings, lambda _: None).put_up_guard())
    except HostError:
        is_complete = False
    logging.disable(logging.NOTSET)
    return functools.partial(_serve, has_guard=is_complete)


def settings_of(flags: Flags, environ: Mapping[str, str]) -> Settings:
    """Check flags and environment. Raises `UsageError` or `ConfigurationError`."""
    managed = flags.one_of("operation-mode", (STANDARD, MANAGED)) == MANAGED
    namespaced = forces_namespaces(flags, environ)
    if managed and not namespaced:
        raise UsageError("--operation-mode=managed: bindings of other namespaces do not count; add --forceNamespaced")
    interval = flags.number("find-identity-retry-interval")
    local_socket = _socket_path(flags, "host-token-socket")
    return Settings(
        node=flags.text("node") or environ.get("NODE_NAME", "") or socket.gethostname(),
        listen_address=_listen_address(flags, environ),
        port=flags.port("nmi-port"),
        metadata_address=_address("--metadata-ip", flags.text("metadata-ip")),
        metadata_port=flags.port("metadata-port"),
        probe_port=flags.port("http-probe-port"),
        prometheus_port=flags.port("prometheus-port"),
        metrics_details=flags.one_of("metrics-details", ("node", "all")) == "all",
        redirect=flags.one_of("redirect", ("nft", "none")) == "nft",
        redirect_check_seconds=max(1.0, float(flags.number("ipt-update-interval-sec"))),
        anti_spoof=flags.one_of("anti-spoof", ("auto", "off")) == "auto",
        accept_ebpf=flags.one_of("ebpf-datapath", ("refuse", "accept")) == "accept",
        accept_cards=flags.one_of("pod-network-cards", ("refuse", "accept")) == "accept",
        managed_mode=managed,
        force_namespaced=namespaced,
        namespace_allow_list=flags.switch("namespace-allow-list"),
        mic_namespace=flags.text("MICNamespace"),
        block_wireserver=flags.switch("block-wireserver"),
        block_instance_metadata=flags.switch("block-instance-metadata"),
        metadata_header_required=flags.switch("metadata-header-required"),
        wait_created_seconds=float(flags.number("retry-attempts-for-created") * interval),
        wait_assigned_seconds=float(flags.number("retry-attempts-for-assigned") * interval),
        retry_after_header=flags.switch("set-retry-after-header"),
        token_cache=flags.switch("token-cache"),
        host_token=flags.switch("host-token-endpoint"),
        host_token_socket=local_socket,
        host_token_loopback=_loopback_is_open(flags, local_socket),
        logins=clouds.logins(environ.get("AZURE_ENVIRONMENT_FILEPATH", "")),
        broker=_broker(flags),
        broker_ca=Path(flags.text("broker-ca")),
        broker_token=Path(flags.text("broker-token")),
        token_file_port=_token_file_port(flags),
        token_file_ipv6_address=_ipv6_address(environ),
        handover_socket=_socket_path(flags, "handover-socket"),
        secret_namespaces=frozenset(flags.list("secret-namespaces")),
        startup_taint=flags.text("startup-taint"),
        user_agent=user_agent("nmi", flags),
        log_format=flags.text("log-format"),
    )


async def _uninstall(flags: Flags, settings: Settings) -> str:
    keep_guard = flags.switch("keep-guard")
    await uninstall(settings, keep_guard=keep_guard)
    return _GUARD_MESSAGE if keep_guard else _OPEN_MESSAGE


def _serve(flags: Flags, settings: Settings, *, has_guard: bool = False) -> Coroutine[Any, Any, None]:
    refuse_kubenet(flags)
    from podidentity.nmi import lifecycle  # noqa: PLC0415  # --help and errors need none of it

    return lifecycle.run(settings, has_guard=has_guard)


def refuse_kubenet(flags: Flags) -> None:
    """Stop as upstream does on kubenet, whose pods can take each other's addresses (CVE-2021-1677).

    Raises `ConfigurationError`; a file that cannot be read is a warning.
    """
    path = Path(flags.text("kubelet-config"))
    if flags.switch("allow-network-plugin-kubenet"):
        return
    try:
        is_kubenet = _KUBENET in path.read_text(errors="replace")
    except FileNotFoundError:  # newer nodes have no such file, and no kubenet either
        return
    except OSError as error:
        _log.warning("cannot tell whether this node uses kubenet: %s: %s", path, error.strerror)
        return
    if is_kubenet:
        raise ConfigurationError(
            f"{path}: this node uses kubenet, where pods can take each other's addresses; "
            "use another network plugin, or accept it with --allow-network-plugin-kubenet"
        )


def _broker(flags: Flags) -> str:
    url = flags.text("broker").rstrip("/")
    if url and not _is_https(url):
        raise UsageError(f'--broker: "{url}" is no https:// address; tokens travel over TLS alone')
    return url


def _is_https(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme == "https" and bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets without an address, a port that is none
        return False


def _token_file_port(flags: Flags) -> int:
    if not flags.number("token-file-port"):
        return 0
    port = flags.port("token-file-port")
    for name in ("nmi-port", "http-probe-port", "prometheus-port"):
        if flags.number(name) == port:
            raise UsageError(f"--token-file-port: {port} is also --{name}; give the door a port of its own")
    if not _broker(flags):
        raise UsageError("--token-file-port: tokens of that door come from the broker; set --broker to its address")
    return port


def _socket_path(flags: Flags, name: str) -> str:
    """Return where a Unix socket goes: aad-pod-identity's manifests mount no directory for any."""
    path = Path(flags.text(name))
    return str(path) if path.is_absolute() and path.parent.is_dir() else ""


def _loopback_is_open(flags: Flags, local_socket: str) -> bool:
    wish = flags.one_of("host-token-loopback", ("auto", "on", "off"))
    return wish == "on" or (wish == "auto" and not local_socket)


def _listen_address(flags: Flags, environ: Mapping[str, str]) -> str:
    address = flags.text("nmi-listen-address")
    if address not in {"", "127.0.0.1", "localhost", "0.0.0.0"}:
        return _address("--nmi-listen-address", address)
    host_address = _host_address(environ)
    return str(host_address) if isinstance(host_address, ipaddress.IPv4Address) else ""


def _ipv6_address(environ: Mapping[str, str]) -> str:
    """Return HOST_IP as sockets spell it where it is an IPv6 address: pods find the token-file door by it."""
    host_address = _host_address(environ)
    return str(host_address) if isinstance(host_address, ipaddress.IPv6Address) else ""


def _host_address(environ: Mapping[str, str]) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return HOST_IP; None where it is not set. Raises `UsageError` for what is not the address of one node."""
    text = environ.get("HOST_IP", "")
    if not text:
        return None
    try:
        address = ipaddress.ip_address(canonical(text))
    except ValueError:
        raise UsageError(f'HOST_IP: "{text}" is no IP address; set it to the node\'s, status.hostIP') from None
    is_of_one_link = isinstance(address, ipaddress.IPv6Address) and (address.is_link_local or address.is_loopback)
    if address.is_unspecified or address.is_multicast or is_of_one_link:
        raise UsageError(f'HOST_IP: pods cannot reach the node at "{text}"; set it to status.hostIP')
    return address


def _address(name: str, text: str) -> str:
    try:
        return str(ipaddress.IPv4Address(text))
    except ValueError:
        raise UsageError(f'{name}: "{text}" is not an IPv4 address; write for example 127.0.0.1') from None


COMMAND = DaemonCommand(
    program="podidentity nmi",
    summary=(
        "The node managed identity daemon: sends the token requests of this node's pods to itself and answers each "
        "with a token of the pod's own identity. A DaemonSet runs it; it needs root and the capability NET_ADMIN."
    ),
    example="podidentity nmi --node=$(hostname) --http-probe-port=8085",
    table=TABLE,
    settings_of=settings_of,
    serve=_serve,
    uninstall=_uninstall,
    prepare=close_off,
)
