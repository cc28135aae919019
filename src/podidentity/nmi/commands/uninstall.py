"""Takes NMI's interception off this host."""

import asyncio

from podidentity.errors import HostError
from podidentity.linux.listening import is_listening
from podidentity.nmi.adapters.redirect import Redirect, RedirectSettings
from podidentity.nmi.ports import LOOPBACK
from podidentity.nmi.settings import Settings

_LEAVING_SECONDS = 20.0  # a stopping NMI finishes what is in flight within 10
_LOOK_AGAIN_SECONDS = 0.5


async def uninstall(settings: Settings, *, keep_guard: bool = False) -> None:
    """Take the interception away once no NMI runs: it would put it up again. Raises `HostError`.

    With `keep_guard`, pods stay cut off from IMDS.
    """
    await _wait_until_alone(settings.port)
    interception = RedirectSettings(settings.metadata_address, settings.metadata_port, "", settings.port)
    await Redirect(interception, lambda _: None).uninstall(keep_guard=keep_guard)


async def _wait_until_alone(port: int) -> None:
    """Return once nobody listens on loopback, as every NMI does; one that was deleted may still be ending."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _LEAVING_SECONDS
    while is_listening(LOOPBACK, port):
        if loop.time() > deadline:
            raise HostError(
                f"an NMI still listens at 127.0.0.1:{port} and would put the interception up again; "
                "delete the DaemonSet nmi first, with --cascade=foreground"
            )
        await asyncio.sleep(_LOOK_AGAIN_SECONDS)
