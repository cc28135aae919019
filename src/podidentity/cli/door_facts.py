"""Gathers what `doctor` must know of NMI's doors through the broker."""

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from podidentity.cli import flags, nmi, webhook
from podidentity.core.exchange.callers import AUDIENCE
from podidentity.core.model.identities import ObjectKey
from podidentity.core.report.brokers import Broker
from podidentity.core.report.diagnosing import Daemon
from podidentity.core.report.doors import DoorFacts, NodeDoor, Webhook
from podidentity.kube import resources
from podidentity.kube.api import Api

_IMAGE = re.compile(r"(?:.*/)?podidentity/webhook(?:[:@].*)?")


async def gather(
    api: Api, attempt: Callable[..., Awaitable[Any]], daemons: tuple[Daemon, ...], brokers: tuple[Broker, ...]
) -> DoorFacts:
    """Return the facts of the doors of these pods of NMI. `attempt` takes note of what cannot be seen."""
    webhooks = await attempt("webhook", _find_webhooks(api), ())
    return DoorFacts(tuple(map(_node_door, daemons)), webhooks, brokers)


async def _find_webhooks(api: Api) -> tuple[Webhook, ...]:
    """Return our webhooks of all namespaces, by their image or command. Raises KubernetesError."""
    deployments = await api.list(resources.DEPLOYMENTS)
    candidates = [_webhook(key, item.value) for key, item in sorted(deployments.items.items())]
    return tuple(candidate for candidate in candidates if candidate is not None)


def _node_door(daemon: Daemon) -> NodeDoor:
    options, _ = flags.parse_leniently("podidentity nmi", nmi.TABLE, daemon.arguments)
    return NodeDoor(daemon, options.number("token-file-port"), options.text("broker"))


def _webhook(key: ObjectKey, deployment: Mapping[str, Any]) -> Webhook | None:
    pod = ((deployment.get("spec") or {}).get("template") or {}).get("spec") or {}
    container = next((item for item in pod.get("containers") or () if _runs_webhook(item)), None)
    if container is None:
        return None
    words = [str(word) for word in container.get("args") or () if word not in {"webhook", "podidentity"}]
    options, _ = flags.parse_leniently("podidentity webhook", webhook.TABLE, words)
    return Webhook(
        key,
        options.number("token-file-port"),
        options.text("custom-token-endpoint-audience") or AUDIENCE,
        int((deployment.get("spec") or {}).get("replicas", 1)),
        int((deployment.get("status") or {}).get("readyReplicas") or 0),
    )


def _runs_webhook(container: Mapping[str, Any]) -> bool:
    words = [str(word) for word in (*(container.get("command") or ()), *(container.get("args") or ()))]
    return _IMAGE.fullmatch(str(container.get("image") or "")) is not None or words[:2] == ["podidentity", "webhook"]
