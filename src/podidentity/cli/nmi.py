"""`podidentity nmi`: flags and environment to settings, then the daemon or the uninstall.

Upstream's flags keep working.

The table is the single source of the parser, of `--help` and of docs/reference/flags.md.
"""

import asyncio
import ipaddress
import logging
import os
import socket
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

from podidentity import __version__
from podidentity.azure import clouds
from podidentity.cli.flags import COMMON, Flag, Flags, help_width, parse, render_help
from podidentity.errors import ConfigurationError, PodIdentityError, UsageError
from podidentity.nmi.settings import MANAGED, STANDARD, Settings
from podidentity.serving import logs

_log = logging.getLogger(__name__)

PROGRAM = "podidentity nmi"
SUMMARY = (
    "The node managed identity daemon: sends the token requests of this node's pods to itself and answers each with a "
    "token of the pod's own identity. A DaemonSet runs it; it needs root and the capability NET_ADMIN."
)
EXAMPLE = "podidentity nmi --node=$(hostname) --http-probe-port=8085"
_KUBENET = "--network-plugin=kubenet"

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
        "In managed mode: namespaces use only what their annotation podidentity.io/allowed-identities names.",
        ours=True,
    ),
    Flag("MICNamespace", "text", "default", "Namespace of MIC, whose own requests go to IMDS."),
    Flag("block-instance-metadata", "switch", "false", "Answer 403 to requests for /metadata/instance."),
    Flag("metadata-header-required", "switch", "true", "Refuse requests without the header Metadata: true."),
    Flag("retry-attempts-for-created", "number", "16", "How many intervals to wait for an assigned identity."),
    Flag("retry-attempts-for-assigned", "number", "4", "How many more until it is on the node."),
    Flag("find-identity-retry-interval", "number", "5", "Length of that interval in seconds; nothing is polled."),
    Flag("set-retry-after-header", "switch", "false", "Answer 503 with Retry-After, not 404, after a wait in vain."),
    Flag("token-cache", "switch", "true", "Keep tokens, and refresh them before they expire.", ours=True),
    Flag("host-token-endpoint", "switch", "true", "Serve /host/token to root programs of the node.", ours=True),
    Flag(
        "secret-namespaces",
        "text",
        "",
        "Other namespaces than its own from which an AzureIdentity may name a Secret, comma-separated.",
        ours=True,
    ),
    Flag("redirect", "text", "nft", "nft: intercept on this host; none: something else sends pods here.", ours=True),
    Flag(
        "anti-spoof",
        "text",
        "auto",
        "auto: pods ask from their own address only, proven by their interface or bridge port; off: not checked.",
        ours=True,
    ),
    Flag(
        "ebpf-datapath",
        "text",
        "refuse",
        "refuse: not ready where eBPF may carry pods' packets past netfilter; accept: it was checked that it does not.",
        ours=True,
    ),
    Flag("ipt-update-interval-sec", "number", "60", "How often the redirect is checked at least, in seconds."),
    Flag("startup-taint", "text", "", "Taint (its key) to take off the node once pods are intercepted.", ours=True),
    Flag("uninstall", "switch", "false", "Remove the interception from this host and exit.", ours=True),
    Flag("http-probe-port", "number", "8080", "Port of /healthz and /readyz."),
    Flag("prometheus-port", "number", "9090", "Port of /metrics."),
    Flag("allow-network-plugin-kubenet", "switch", "false", "Start although the node uses kubenet."),
    Flag("kubelet-config", "text", "/etc/default/kubelet", "File in which kubenet is looked for."),
    Flag("enableScaleFeatures", "switch", "true", "NMI scales without it.", effect=False),
    Flag("enable-conntrack-deletion", "switch", "true", "Old connections are always ended.", effect=False),
    *COMMON,
)


def run(arguments: Sequence[str]) -> int:
    """Run the command; its exit status. Raises `PodIdentityError`."""
    flags = parse(PROGRAM, TABLE, arguments)
    if flags.switch("help"):
        print(render_help(PROGRAM, SUMMARY, TABLE, EXAMPLE, help_width()))
        return 0
    if flags.switch("version"):
        print(f"podidentity {__version__}")
        return 0
    logs.set_up(flags.one_of("log-format", ("text", "json")), flags.number("v"))
    settings = settings_of(flags, os.environ)
    if flags.without_effect:
        _log.warning("flags without effect here: %s", ", ".join(f"--{name}" for name in flags.without_effect))
    if settings.namespace_allow_list and not settings.managed_mode:
        _log.warning("--namespace-allow-list counts in managed mode only; in standard mode give it to MIC")
    return _act(flags, settings)


def settings_of(flags: Flags, environ: Mapping[str, str]) -> Settings:
    """Check flags and environment. Raises `UsageError` or `ConfigurationError`."""
    managed = flags.one_of("operation-mode", (STANDARD, MANAGED)) == MANAGED
    namespaced = flags.switch("forceNamespaced") or environ.get("FORCENAMESPACED", "").lower() == "true"
    if managed and not namespaced:
        raise UsageError("--operation-mode=managed needs --forceNamespaced: bindings of other namespaces do not count")
    interval = flags.number("find-identity-retry-interval")
    agent = f"podidentity-nmi/{__version__} {flags.text('custom-user-agent')}".strip()
    return Settings(
        node=flags.text("node") or environ.get("NODE_NAME", "") or socket.gethostname(),
        listen_address=_listen_address(flags, environ),
        port=flags.port("nmi-port"),
        metadata_address=_address("--metadata-ip", flags.text("metadata-ip")),
        metadata_port=flags.port("metadata-port"),
        probe_port=flags.port("http-probe-port"),
        prometheus_port=flags.port("prometheus-port"),
        redirect=flags.one_of("redirect", ("nft", "none")) == "nft",
        redirect_check_seconds=max(1.0, float(flags.number("ipt-update-interval-sec"))),
        anti_spoof=flags.one_of("anti-spoof", ("auto", "off")) == "auto",
        accept_ebpf=flags.one_of("ebpf-datapath", ("refuse", "accept")) == "accept",
        managed_mode=managed,
        force_namespaced=namespaced,
        namespace_allow_list=flags.switch("namespace-allow-list"),
        mic_namespace=flags.text("MICNamespace"),
        block_instance_metadata=flags.switch("block-instance-metadata"),
        metadata_header_required=flags.switch("metadata-header-required"),
        wait_created_seconds=float(flags.number("retry-attempts-for-created") * interval),
        wait_assigned_seconds=float(flags.number("retry-attempts-for-assigned") * interval),
        retry_after_header=flags.switch("set-retry-after-header"),
        token_cache=flags.switch("token-cache"),
        host_token=flags.switch("host-token-endpoint"),
        logins=clouds.logins(environ.get("AZURE_ENVIRONMENT_FILEPATH", "")),
        secret_namespaces=frozenset(filter(None, flags.text("secret-namespaces").split(","))),
        startup_taint=flags.text("startup-taint"),
        user_agent=agent,
        log_format=flags.text("log-format"),
    )


def _act(flags: Flags, settings: Settings) -> int:
    # The daemon is imported late: --help and bad flags should answer at once.
    from podidentity.nmi import daemon  # noqa: PLC0415  # see above

    if flags.switch("uninstall"):
        _finish(daemon.uninstall(settings), asyncio.run)
        print("The interception is removed: pods of this node reach the real IMDS again.")
        return 0
    refuse_kubenet(flags)
    import uvloop  # noqa: PLC0415  # a daemon's, not a command's

    _finish(daemon.run(settings), uvloop.run)
    return 0


def _finish(work: Coroutine[Any, Any, None], runner: Callable[[Coroutine[Any, Any, None]], None]) -> None:
    """Run `work`; of several errors at once, the first of ours is told."""
    try:
        runner(work)
    except BaseExceptionGroup as group:
        ours = group.subgroup(PodIdentityError)
        while isinstance(ours, BaseExceptionGroup):
            ours = ours.exceptions[0]  # type: ignore[assignment]  # a group's first member, itself perhaps a group
        if isinstance(ours, PodIdentityError):
            raise ours from None
        raise


def refuse_kubenet(flags: Flags) -> None:
    """Stop as upstream does on kubenet, whose pods can take each other's addresses (CVE-2021-1677).

    Raises `ConfigurationError`; a file that cannot be read is a warning.
    """
    path = Path(flags.text("kubelet-config"))
    if flags.switch("allow-network-plugin-kubenet"):
        return
    try:
        found = _KUBENET in path.read_text(errors="replace")
    except FileNotFoundError:  # newer nodes have no such file, and no kubenet either
        return
    except OSError as error:
        _log.warning("cannot tell whether this node uses kubenet: %s: %s", path, error.strerror)
        return
    if found:
        raise ConfigurationError(
            f"{path}: this node uses kubenet, where pods can take each other's addresses; "
            "use another network plugin, or accept it with --allow-network-plugin-kubenet"
        )


def _listen_address(flags: Flags, environ: Mapping[str, str]) -> str:
    given = flags.text("nmi-listen-address")
    if given not in {"", "127.0.0.1", "localhost", "0.0.0.0"}:
        return _address("--nmi-listen-address", given)
    found = environ.get("HOST_IP", "")
    return _address("HOST_IP", found) if found and ":" not in found else ""


def _address(name: str, text: str) -> str:
    try:
        return str(ipaddress.IPv4Address(text))
    except ValueError:
        raise UsageError(f'{name}: "{text}" is not an IPv4 address') from None
