"""Starts NMI, keeps it running, and ends it in an order that never leaves a pod a way to the real IMDS.

At the start: ip rules, guard, listen, nat, connection tracking; pods come in once it is known who they are (`duty`).
Where another NMI serves, or one has crashed, its sockets are taken over, and nobody notices. At the end (SIGTERM) what
is in flight is finished, and everything stays as it is: served by a successor, or closed to pods until there is one.
"""

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, NoReturn

from podidentity.kube.api import Api
from podidentity.kube.connection import find_cluster, open_client
from podidentity.nmi.adapters.broker import open_broker
from podidentity.nmi.adapters.imds import open_imds_client
from podidentity.nmi.adapters.sockets import open_keeper
from podidentity.nmi.adapters.startup_taint import remove_startup_taint
from podidentity.nmi.adapters.succession import Succession
from podidentity.nmi.duty import Duty
from podidentity.nmi.metrics import Metrics
from podidentity.nmi.settings import Settings
from podidentity.nmi.wiring import (
    Clients,
    Parts,
    TokenServers,
    assemble,
    broker_address,
    build_redirect,
    redirect_settings,
)
from podidentity.serving import memory
from podidentity.serving.metrics import make_registry
from podidentity.supervisor import CRASH_VARIABLE
from podidentity.timing import SYSTEM_CLOCK

_log = logging.getLogger(__name__)


class _StopRequest(Exception):  # noqa: N818  # no error: the way out of a task group
    """The daemon was asked to stop and has."""


async def run(settings: Settings, *, has_guard: bool = False) -> None:
    """Run until SIGTERM or SIGINT. Raises `PodIdentityError` when it cannot start or go on.

    `has_guard`: the whole guard of these settings was put up just now. After a crash, clients wait for the second time.
    """
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    if crash := os.environ.pop(CRASH_VARIABLE, ""):
        _log.warning("NMI crashed (%s) and was started again; whoever connected meanwhile has waited", crash)
    metrics = Metrics(make_registry())
    interception = redirect_settings(settings)
    redirect = build_redirect(interception, metrics) if settings.redirect else None
    if redirect is not None and not has_guard:
        await redirect.put_up_guard()  # before anything that can fail
    async with contextlib.AsyncExitStack() as resources:
        clients = await _open_clients(settings, resources)
        try:
            async with asyncio.TaskGroup() as tasks:
                parts = assemble(settings, interception, redirect, metrics, clients, tasks)
                await _serve_until(stop, parts, tasks)
        except* _StopRequest:
            pass


async def _open_clients(settings: Settings, resources: contextlib.AsyncExitStack) -> Clients:
    cluster = find_cluster(settings.kubeconfig)
    api = Api(await resources.enter_async_context(open_client(cluster, settings.user_agent)))
    imds = await resources.enter_async_context(open_imds_client(settings.user_agent))
    broker = open_broker(broker_address(settings), settings.user_agent, SYSTEM_CLOCK)
    return Clients(api, TokenServers(imds, await resources.enter_async_context(broker)))


async def _serve_until(stop: asyncio.Event, parts: Parts, tasks: asyncio.TaskGroup) -> NoReturn:
    settings = parts.settings
    sockets, kept_sockets = open_keeper(os.environ)
    sockets.on_keepers_end(stop.set)
    succession = Succession(Path(settings.handover_socket) if settings.handover_socket else None, sockets)
    duty = Duty(parts, sockets, succession, tasks)
    for work in (parts.recorder.run(), memory.keep_giving_back(), parts.cluster.run(), parts.listener.run()):
        tasks.create_task(work)
    if parts.anti_spoof is not None:
        parts.cluster.on_pods(parts.anti_spoof.look_again)
    if not await succession.join():
        sockets.adopt(kept_sockets)
    if settings.startup_taint:
        taint, is_ready = settings.startup_taint, parts.health.is_ready
        tasks.create_task(remove_startup_taint(parts.api, settings.node, taint, is_ready, SYSTEM_CLOCK))
    await _take_turns(stop, duty, succession)
    succession.close()
    raise _StopRequest  # which ends every task of the group


async def _take_turns(stop: asyncio.Event, duty: Duty, succession: Succession) -> None:
    """Serve and stand by in turn with other NMIs of this node, until told to stop."""
    while await _unless(stop, duty.begin()):
        await _first(stop, succession.taken_over)
        if not succession.taken_over.is_set():
            break
        await duty.stand_by()
        while not stop.is_set() and (succession.is_linked or await succession.join()):
            await _first(stop, succession.bereft)
            if succession.bereft.is_set() and succession.is_linked:  # the other one asks for it
                break
        if stop.is_set():
            await duty.abandon()
            return
    if succession.is_linked:  # another one serves, and this one was not ready yet
        await duty.abandon()
    else:
        await duty.stop()


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
    """Do `work` unless told to stop before it is done; whether it was done. Raises what it raises."""
    task = asyncio.ensure_future(work)
    stopped = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
            return True
    finally:
        stopped.cancel()
        task.cancel()
    await asyncio.wait({task})
    return False


async def _first(*events: asyncio.Event) -> None:
    """Wait for one of several events."""
    waits = {asyncio.ensure_future(event.wait()) for event in events}
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
