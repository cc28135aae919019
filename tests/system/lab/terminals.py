"""Somebody at a terminal: a program with a real pseudo-terminal, what it shows, and keys that are pressed."""

import contextlib
import fcntl
import os
import pty
import struct
import subprocess
import termios
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from waiting import until


@dataclass
class Screen:
    """A terminal with a program."""

    process: subprocess.Popen[bytes]
    leader: int
    _shown: bytearray = field(default_factory=bytearray)

    @property
    def shown(self) -> str:
        """All that the program has written."""
        return bytes(self._shown).decode(errors="replace")

    def press(self, keys: str) -> None:
        """Press keys; a line ends with a carriage return."""
        os.write(self.leader, keys.encode())

    def resize(self, rows: int, columns: int) -> None:
        """Change its size, of which the kernel tells the program."""
        fcntl.ioctl(self.leader, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def until_shown(self, text: str) -> None:
        """Wait for a text on it."""
        until(lambda: text in self.shown or self.process.poll() is not None, f"{text!r} on the terminal")
        assert text in self.shown, self.shown

    def read(self) -> None:
        """Read until the program has closed it."""
        with contextlib.suppress(OSError):
            while chunk := os.read(self.leader, 4096):
                self._shown += chunk


@contextlib.contextmanager
def screen(command: Sequence[str], environment: Mapping[str, str], rows: int, columns: int) -> Iterator[Screen]:
    """A program at a terminal of this size; it is killed when the test leaves it."""
    leader, follower = pty.openpty()
    fcntl.ioctl(leader, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    process = subprocess.Popen(
        ["setsid", "--ctty", *command], env=dict(environment), stdin=follower, stdout=follower, stderr=follower
    )
    os.close(follower)
    one = Screen(process, leader)
    reading = threading.Thread(target=one.read, daemon=True)
    reading.start()
    try:
        yield one
    finally:
        process.kill()
        process.wait()
        reading.join(10)
        os.close(leader)
