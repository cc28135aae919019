"""Starts the webhook and ends it."""

import asyncio

from podidentity.https.lifecycle import Daemon, Ports, StopRequest, serve, stop_event
from podidentity.kube.api import Api
from podidentity.kube.connection import find_cluster, open_client
from podidentity.timing import SYSTEM_CLOCK
from podidentity.webhook.settings import Settings
from podidentity.webhook.wiring import assemble


async def run(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT. Raises `PodIdentityError` when it cannot start."""
    stop = stop_event()
    async with open_client(find_cluster(settings.kubeconfig), settings.user_agent) as client:
        parts = assemble(settings, Api(client), SYSTEM_CLOCK)
        ports = Ports(settings.address, settings.port, settings.probe_port, settings.prometheus_port)
        daemon = Daemon(
            "the webhook",
            ports,
            parts.server,
            parts.certificates,
            parts.metrics.registry,
            parts.metrics.certificate_expiry,
            settings.drain_seconds,
        )
        try:
            async with asyncio.TaskGroup() as tasks:
                await serve(daemon, stop, tasks)
        except* StopRequest:
            pass
