"""Connections to the page, with a bound for those of other users, who could use up its descriptors by them."""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from podidentity_lab.page.door import IsWelcome

STRANGERS_LIMIT = 16


def bounded_protocol(is_welcome: IsWelcome) -> type[asyncio.Protocol]:
    """Return uvicorn's protocol with at most `STRANGERS_LIMIT` connections of others; `door` refuses these politely."""
    strangers: set[asyncio.Protocol] = set()

    class BoundedProtocol(H11Protocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if is_welcome(transport.get_extra_info("peername"), transport.get_extra_info("sockname")):
                return
            if len(strangers) >= STRANGERS_LIMIT:
                transport.abort()
            else:
                strangers.add(self)

        def connection_lost(self, exc: Exception | None) -> None:
            strangers.discard(self)
            super().connection_lost(exc)

    return BoundedProtocol
