"""Serves the page of a lab until the lab ends or somebody ends the page."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Callable

from podidentity.errors import HostError
from podidentity_lab.callers import Callers
from podidentity_lab.directory import Directory
from podidentity_lab.page.app import application
from podidentity_lab.page.connections import bounded_protocol
from podidentity_lab.page.door import Address
from podidentity_lab.page.feed import Feed
from podidentity_lab.page.sources import Sources
from podidentity_lab.serving import serve

LOOPBACK = "127.0.0.1"
FIRST_LOOK_SECONDS = 10.0


def run(lab: Directory, port: int, show: Callable[[str], None]) -> bool:
    """Serve on loopback, on any free port if `port` is 0; call `show` with the URL once it answers.

    Returns at SIGINT, SIGTERM or SIGHUP, and when the lab is gone; whether it is gone. Raises `HostError` for a port
    that is taken.
    """
    try:
        listening_socket = socket.create_server((LOOPBACK, port))
    except OSError as error:
        raise HostError(f"--port {port}: it cannot be used: {error.strerror}; give another one") from None
    callers = Callers.of_this_host(_user())
    with listening_socket, contextlib.closing(callers):
        listening_socket.setblocking(False)
        return asyncio.run(_serve(lab, listening_socket, callers, show))


def _user() -> int:
    """Return whose browser is to have the page: by sudo it is not root's."""
    return int(os.environ.get("SUDO_UID", "")) if os.environ.get("SUDO_UID", "").isdecimal() else os.geteuid()


async def _serve(
    lab: Directory, listening_socket: socket.socket, callers: Callers, show: Callable[[str], None]
) -> bool:
    address = Address(listening_socket.getsockname()[1])
    feed = Feed()
    sources = Sources(lab, feed)
    app = application(lab.name, feed, sources.set_faults, address, callers.is_welcome)
    reading = asyncio.create_task(sources.run())
    serving = asyncio.create_task(serve(app, [listening_socket], protocol=bounded_protocol(callers.is_welcome)))
    stopping = asyncio.create_task(_stop())
    try:
        first_look = asyncio.create_task(feed.first_look.wait())
        await asyncio.wait({first_look, stopping}, timeout=FIRST_LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        first_look.cancel()
        if not stopping.done():
            show(address.url)
        await asyncio.wait({reading, serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
        is_gone = not stopping.done()
    finally:
        await feed.close()
        logging.getLogger("uvicorn").setLevel(logging.CRITICAL)  # an answer that is cut now is no error
        for task in (reading, serving, stopping):
            task.cancel()
        await asyncio.gather(reading, serving, stopping, return_exceptions=True)
    if not reading.cancelled():
        reading.result()
    return is_gone


async def _stop() -> None:
    """Return at a signal that ends the page: an interruption in the midst of an answer would look like a bug."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await stop.wait()
