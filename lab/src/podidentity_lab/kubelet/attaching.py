"""What clients have of a container: its own streams (`kubectl attach`), or those of a program beside it (`exec`).

A container's output is its log, from which each client reads: there is no other copy, and none of them can hold the
container up. Standard error comes with standard output.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator

from podidentity_lab.kubelet import logs, terminals
from podidentity_lab.kubelet.containers import ContainerProcess
from podidentity_lab.kubernetes.sessions import STDERR, STDOUT, Input, Session

LOOK_SECONDS = 0.02
"""Between two looks at the log: what somebody types at a terminal must appear at once."""
CHUNK_BYTES = 32 * 1024
PIPE = asyncio.subprocess.PIPE


class PipeInput:
    """The input of a program that reads from a pipe."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer

    async def send(self, content: bytes) -> None:
        """Pass bytes on; a program that does not read any more is no error."""
        with contextlib.suppress(ConnectionError, RuntimeError):
            self._writer.write(content)
            await self._writer.drain()

    def end(self) -> None:
        """Close the pipe."""
        self._writer.close()


def attach(running: ContainerProcess, *, stdin: bool) -> Session:
    """Return a container's own streams, the input only with `stdin` and where it has one.

    The first client also gets what has been written already, such as a prompt; others what comes from now on.
    """
    running.attached += 1
    position = 0 if running.attached == 1 else running.console.log.stat().st_size
    own_input = _input(running)

    async def succeed() -> int:
        return 0  # clients that attach are not told how the container ended: its status says it

    async def leave() -> None:
        if stdin and own_input is not None and running.console.stdin_once:
            own_input.end()

    output = logs.follow_file(running.console.log, position, lambda: not running.is_over, LOOK_SECONDS)
    resize = running.terminal.resize if running.terminal else None
    return Session({STDOUT: output}, own_input if stdin else None, succeed, leave, resize)


def _input(running: ContainerProcess) -> Input | None:
    if running.terminal is not None:
        return running.terminal if running.console.stdin else None
    return PipeInput(running.process.stdin) if running.process.stdin is not None else None


async def execute(running: ContainerProcess, command: list[str], *, tty: bool) -> Session:
    """Start a program beside a container and return its streams; it ends with its client. Raises `OSError`."""
    if tty:
        return await _execute_at_terminal(running, command)
    process = await running.start_beside(command, stdin=PIPE, stderr=PIPE)
    assert process.stdin is not None  # noqa: S101  # it was started with pipes
    assert process.stdout is not None  # noqa: S101  # likewise
    assert process.stderr is not None  # noqa: S101  # likewise
    outputs = {STDOUT: _chunks(process.stdout), STDERR: _chunks(process.stderr)}

    async def leave() -> None:
        await _kill(process)

    return Session(outputs, PipeInput(process.stdin), process.wait, leave)


async def _execute_at_terminal(running: ContainerProcess, command: list[str]) -> Session:
    terminal, program_end = terminals.open_pair(f"/proc/{running.first}/root/dev/pts/ptmx")
    try:
        process = await running.start_at_terminal(command, program_end)
    except BaseException:
        terminal.close()
        raise
    finally:
        os.close(program_end)

    async def leave() -> None:
        await _kill(process)
        terminal.close()

    return Session({STDOUT: terminal.chunks()}, terminal, process.wait, leave, terminal.resize)


async def _chunks(stream: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while chunk := await stream.read(CHUNK_BYTES):
        yield chunk


async def _kill(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()  # it may not have its own group yet
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()
