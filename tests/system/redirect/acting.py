"""What the daemon does to its host, done by a test inside a node's namespace, without the daemon."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from podidentity.nmi.adapters.redirect import Redirect, RedirectSettings
from system.redirect.network import IMDS, NODE, Namespace, Network

PORT = 2579
SETTINGS = RedirectSettings(IMDS, 80, NODE, PORT, check_seconds=60.0)


def within(namespace: Namespace, act: Callable[[Redirect], Coroutine[Any, Any, Any]]) -> Any:
    """Run what a daemon would do, inside its namespace."""
    return namespace.call(lambda: asyncio.run(act(Redirect(SETTINGS, lambda _: None))))


def put_up(network: Network) -> None:
    """Put the interception up, and count from then on: what was closed before may still be on its way."""
    within(network.node, install)
    network.leaked()


async def install(redirect: Redirect) -> None:
    """Do what the daemon does at its start, with something listening already."""
    await redirect.put_up_guard()
    await redirect.send_pods_here()
    await redirect.let_in()
