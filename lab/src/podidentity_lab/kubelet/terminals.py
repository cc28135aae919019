"""Pseudo-terminals (pty(7)): the end that the lab holds, while a container's programs have the other."""

import asyncio
import fcntl
import os
import struct
import termios
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

CHUNK_BYTES = 32 * 1024
END_OF_INPUT = b"\x04"
"""Ctrl-D: what a terminal has in the place of a closed pipe."""
_SET_LOCK, _GET_PEER = 0x40045431, 0x5441
"""TIOCSPTLCK and TIOCGPTPEER (ioctl_tty(2)), which opens the other end without a path: that is in another root."""


class Terminal:
    """The lab's end of a pseudo-terminal, of which this object closes the descriptor."""

    def __init__(self, descriptor: int) -> None:
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield what is written to it until all programs have closed it. For one reader."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                chunk = os.read(self._descriptor, CHUNK_BYTES)
            except BlockingIOError:
                await self._until_ready(loop.add_reader, loop.remove_reader)
                continue
            except OSError:  # EIO: nobody has the other end any more
                return
            if not chunk:
                return
            yield chunk

    async def send(self, content: bytes) -> None:
        """Type `content`; returns when the terminal has taken it, or is gone."""
        loop = asyncio.get_running_loop()
        while content:
            try:
                content = content[os.write(self._descriptor, content) :]
            except BlockingIOError:
                await self._until_ready(loop.add_writer, loop.remove_writer)
            except OSError:
                return

    def end(self) -> None:
        """Type the end of the input."""
        with suppress(OSError):
            os.write(self._descriptor, END_OF_INPUT)

    def resize(self, columns: int, rows: int) -> None:
        """Set its size, of which its programs are told (SIGWINCH)."""
        with suppress(OSError, ValueError, struct.error):
            fcntl.ioctl(self._descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def close(self) -> None:
        """Close it: its programs are hung up (SIGHUP)."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    async def _until_ready(self, add: Callable[..., None], remove: Callable[[int], object]) -> None:
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        descriptor = self._descriptor

        def note() -> None:
            if not ready.done():
                ready.set_result(None)

        add(descriptor, note)
        try:
            await ready
        finally:
            remove(descriptor)


def open_pair(multiplexer: str) -> tuple[Terminal, int]:
    """Open a terminal of the devpts that has this `ptmx`; return it with the program's end. Raises `OSError`."""
    descriptor = os.open(multiplexer, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(descriptor, _SET_LOCK, struct.pack("i", 0))
        program_end = fcntl.ioctl(descriptor, _GET_PEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        os.close(descriptor)
        raise
    return Terminal(descriptor), program_end
