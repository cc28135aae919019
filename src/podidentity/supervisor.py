"""`podidentity supervise PROGRAM...`: keeps a daemon running, and its listening sockets open while it is not.

Clients that connect while a crashed daemon starts again wait in the queues of those sockets, and none is refused. The
daemon hands them over (`podidentity.linux.passing`) on a socket whose number is in the environment. Whoever ends the
supervisor ends the daemon: it passes SIGTERM on, and exits as the daemon does. Small on purpose: it is in memory all
the time.
"""

import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from types import FrameType

from podidentity.linux.passing import receive_sockets, send_sockets

KEEPER_VARIABLE = "PODIDENTITY_KEEPER"
"""The number of the file descriptor by which the daemon reaches its supervisor."""
CRASH_VARIABLE = "PODIDENTITY_CRASH"
"""How the daemon's last process ended, in words; absent at the first start."""
SOCKETS_WORD = "sockets"
STARTED_NAME = "nmi-started"
"""What a daemon calls its process once it serves, or could: at most 15 bytes (prctl(2), PR_SET_NAME)."""

RESTARTS = 5
RESTART_SECONDS = 60.0
"""More crashes within this time than RESTARTS end the supervisor: whoever runs the container starts it more slowly."""
_CRASH_STATUS = 1  # an exception that nobody expected; what a daemon refuses has a status of its own (`errors`)


def supervise(command: Sequence[str]) -> int:
    """Run `command` until it ends by itself or on SIGTERM; return its exit status, as a shell would."""
    return _Supervisor(command).run()


def is_started() -> bool:
    """Whether a daemon of this PID namespace, which is a container's own, serves or could. The startup probe asks."""
    for process in filter(str.isdigit, os.listdir("/proc")):  # noqa: PTH208  # pathlib is not light
        try:
            with open(f"/proc/{process}/comm", encoding="utf-8", errors="replace") as name:  # noqa: PTH123  # light
                if name.read().strip() == STARTED_NAME:
                    return True
        except OSError:  # it has ended
            continue
    return False


class _Supervisor:
    def __init__(self, command: Sequence[str]) -> None:
        self._command = list(command)
        self._sockets: list[socket.socket] = []
        self._process = 0
        self._stopping = False
        self._crashes: list[float] = []

    def run(self) -> int:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        crash = ""
        while True:
            status = self._run_once(crash)
            if self._stopping or not self._may_restart(status):
                return status if status >= 0 else 128 - status
            crash = f"signal {-status}" if status < 0 else f"exit status {status}"

    def _run_once(self, crash: str) -> int:
        """Start the daemon with the sockets that are kept, and wait for its end: its status, negative for a signal."""
        keeper_end, daemon_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with keeper_end:
            with daemon_end:
                daemon_end.set_inheritable(True)
                send_sockets(keeper_end, SOCKETS_WORD, self._sockets)
                variables = {**os.environ, KEEPER_VARIABLE: str(daemon_end.fileno())}
                if crash:
                    variables[CRASH_VARIABLE] = crash
                self._process = os.posix_spawnp(self._command[0], self._command, variables)
            if self._stopping:  # told so before there was a process to tell
                os.kill(self._process, signal.SIGTERM)
            self._keep_sockets(keeper_end)
        _, status = os.waitpid(self._process, 0)
        self._process = 0
        return os.waitstatus_to_exitcode(status)

    def _keep_sockets(self, connection: socket.socket) -> None:
        """Keep what the daemon sends, until its end closes the connection."""
        while True:
            try:
                word, sockets = receive_sockets(connection)
            except ConnectionResetError:  # it ended without reading
                return
            if not word:
                return
            for previous in self._sockets:
                previous.close()
            self._sockets = sockets

    def _may_restart(self, status: int) -> bool:
        if status >= 0 and status != _CRASH_STATUS:
            return False
        now = time.monotonic()
        self._crashes = [moment for moment in self._crashes if now - moment < RESTART_SECONDS] + [now]
        if len(self._crashes) > RESTARTS:
            sys.stderr.write(f"error: {self._command[0]} crashed {len(self._crashes)} times in a minute; see above\n")
            return False
        return True

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        self._stopping = True
        if self._process:
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(self._process, number)
