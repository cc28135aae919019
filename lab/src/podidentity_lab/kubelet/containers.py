"""One container as a process: started in namespaces of its own, signalled, waited for.

Its root is `sandbox.root`, its first process `sandbox.launch`. When it runs is decided in `lifecycle` and `pod`, what
clients have of its streams in `attaching`.
"""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import podidentity
import podidentity_lab
from podidentity.errors import LabError
from podidentity_lab.kubelet.terminals import Terminal
from podidentity_lab.linux.namespaces import NAMESPACES_DIRECTORY

START_SECONDS = 20.0
LOOK_AGAIN_SECONDS = 0.5
DRAIN_SECONDS = 2.0
"""For what a terminal still holds at the end; a process that its container has left behind may keep it open."""

DEFAULT_TERMINAL = "xterm"  # as container runtimes say

_SOURCE = [str(Path(package.__path__[0]).resolve().parent) for package in (podidentity_lab, podidentity)]
# -I and -S: no packages, no user's settings: the standard library is all that `launch` needs, and it starts in 15 ms.
_LAUNCH = f"import sys; sys.path[:0] = {_SOURCE!r}; from podidentity_lab.sandbox.launch import main; main()"
_NAMESPACES = ("--mount", "--uts", "--ipc")
_OWN_PROCESSES = ("--pid", "--fork", "--kill-child=KILL")


class StartError(LabError):
    """The container's program could not be started; the sentence names it."""


@dataclass(frozen=True, slots=True)
class Console:
    """What a container's own standard streams are, by the pod's fields of the same names.

    `log` takes the output. `processes` is a process whose PID namespace the container joins; 0: it has one of its own.
    """

    log: Path
    stdin: bool = False
    stdin_once: bool = False
    tty: bool = False
    processes: int = 0


@dataclass(slots=True)
class ContainerProcess:
    """A container that runs. `first` is its first process as the lab numbers it, 0 when it ended at once.

    `is_over` once it has ended and all its output is in its log; `attached` counts the clients that it has had.
    """

    process: asyncio.subprocess.Process
    first: int
    network: str
    environment: Mapping[str, str]
    console: Console
    terminal: Terminal | None = None
    log_task: asyncio.Task[None] | None = None
    is_over: bool = False
    attached: int = 0

    async def wait(self) -> int:
        """Wait for its end; return the exit code as container runtimes do: 128 + the signal's number after a kill."""
        status = await self.process.wait()
        if self.log_task is not None:
            await asyncio.wait({self.log_task}, timeout=DRAIN_SECONDS)
            self.log_task.cancel()
        self.is_over = True
        return 128 - status if status < 0 else status

    def send(self, number: signal.Signals) -> None:
        """Send a signal to its first process, if there still is one."""
        if self.process.returncode is None and self.first:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.first, number)

    async def stop(self, grace_seconds: Callable[[], float]) -> None:
        """Ask it to end, and kill it when the time is over. `grace_seconds` is called repeatedly: it may shrink."""
        self.send(signal.SIGTERM)
        start = time.monotonic()
        while (remaining := grace_seconds() - (time.monotonic() - start)) > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(remaining, LOOK_AGAIN_SECONDS)):
                    await self.process.wait()
                    return
        self.send(signal.SIGKILL)
        await self.process.wait()

    async def execute(self, command: list[str], seconds: float) -> tuple[int, bytes]:
        """Run a program beside it; return its exit status and output. Raises `TimeoutError`."""
        process = await self.start_beside(command, stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.STDOUT)
        try:
            async with asyncio.timeout(seconds):
                output, _ = await process.communicate()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
            raise
        return process.returncode or 0, output

    async def start_beside(self, command: Sequence[str], *, stdin: int, stderr: int) -> asyncio.subprocess.Process:
        """Start a program in the container's namespaces, root and environment. Raises `OSError`."""
        return await asyncio.create_subprocess_exec(
            *self._entering_command(command, self.environment),
            stdin=stdin,
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
            start_new_session=True,
        )

    async def start_at_terminal(self, command: Sequence[str], program_end: int) -> asyncio.subprocess.Process:
        """Start a program beside it whose three streams are a terminal's `program_end`. Raises `OSError`."""
        variables = {"TERM": DEFAULT_TERMINAL, **self.environment}
        return await asyncio.create_subprocess_exec(  # setsid makes the session that the terminal controls
            *("setsid", "--ctty", *self._entering_command(command, variables)),
            stdin=program_end,
            stdout=program_end,
            stderr=program_end,
        )

    def _entering_command(self, command: Sequence[str], environment: Mapping[str, str]) -> tuple[str, ...]:
        variables = [f"{name}={value}" for name, value in environment.items()]
        places = ("--mount", "--pid", "--uts", "--ipc", "--net", "--root", "--wd")
        return "nsenter", f"--target={self.first}", *places, "--", "/usr/bin/env", "-i", *variables, *command


async def start(plan: dict[str, Any], network: str, folder: Path, console: Console) -> ContainerProcess:
    """Start what `plan` says in the network namespace `network`, writing to the console's log. Raises `StartError`."""
    file = _write(plan, folder)
    reading, writing = os.pipe()
    lab_end, launch_end = socket.socketpair()
    with lab_end, launch_end:
        try:
            descriptors = (writing, launch_end.fileno()) if console.tty else (writing,)
            process = await _spawn(console, network, [str(file), *map(str, descriptors)], descriptors)
            os.close(writing)
            writing = -1
            await _launch(process, reading)
            running = ContainerProcess(process, child_of(process.pid), network, plan["environment"], console)
            if console.tty:
                _, (terminal,), _, _ = socket.recv_fds(lab_end, 1, 1)  # sent before the report: nothing to wait for
                running.terminal = Terminal(terminal)
                running.log_task = asyncio.create_task(_write_log(running.terminal, console.log))
            return running
        finally:
            for descriptor in (reading, writing):
                if descriptor >= 0:
                    os.close(descriptor)


async def _spawn(
    console: Console, network: str, words: Sequence[str], descriptors: Sequence[int]
) -> asyncio.subprocess.Process:
    joining = [f"--pid=/proc/{console.processes}/ns/pid"] if console.processes else []
    namespaces = (*_NAMESPACES, *(() if console.processes else _OWN_PROCESSES))
    is_open = console.stdin and not console.tty
    with console.log.open("ab") as output:
        return await asyncio.create_subprocess_exec(
            *("nsenter", f"--net={NAMESPACES_DIRECTORY / network}", *joining, "--", "unshare", *namespaces, "--"),
            *(sys.executable, "-I", "-S", "-c", _LAUNCH, *words),
            stdin=asyncio.subprocess.PIPE if is_open else asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=descriptors,
            start_new_session=True,
            env={},
        )


async def _write_log(terminal: Terminal, log: Path) -> None:
    """Write what a container's programs write to their terminal into its log, and close the terminal at their end."""
    try:
        with log.open("ab", buffering=0) as file:
            async for chunk in terminal.chunks():
                file.write(chunk)
    finally:
        terminal.close()


def _write(plan: dict[str, Any], folder: Path) -> Path:
    Path(plan["root"]).mkdir(parents=True, exist_ok=True)
    file = folder / "plan.json"
    file.touch(0o600)  # secrets of the pod's environment are in it
    file.write_text(json.dumps(plan))
    return file


async def _launch(process: asyncio.subprocess.Process, reading: int) -> None:
    """Wait until the program has taken over. Raises `StartError`."""
    report = ""
    try:
        async with asyncio.timeout(START_SECONDS):
            report = await _first_line(process, reading)
            if report == "ok":
                return
            await process.wait()
    except BaseException as error:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        if isinstance(error, TimeoutError):
            raise StartError(
                f"the container did not start within {START_SECONDS:g} s; start it on a less busy machine"
            ) from None
        raise
    # `launch` reports ok before it executes the program, which can still fail: then a sentence follows.
    raise StartError(
        report.removeprefix("ok").strip() or "the container's namespaces could not be made; its log says why"
    )


async def _first_line(process: asyncio.subprocess.Process, reading: int) -> str:
    """Return what `launch` reports; "" when it ended without a report."""
    os.set_blocking(reading, False)
    loop = asyncio.get_running_loop()
    arrived: asyncio.Future[str] = loop.create_future()
    report = bytearray()

    def read() -> None:
        chunk = os.read(reading, 4096)
        report.extend(chunk)
        if (not chunk or b"\n" in chunk) and not arrived.done():
            arrived.set_result(report.decode(errors="replace").strip())

    loop.add_reader(reading, read)
    process_end = asyncio.create_task(process.wait())
    either: set[asyncio.Future[Any]] = {arrived, process_end}
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        return arrived.result() if arrived.done() else ""
    finally:
        loop.remove_reader(reading)
        process_end.cancel()


def child_of(pid: int) -> int:
    """Return the only child of `unshare` or `nsenter`, a container's first process; 0 when it has ended already."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0
    return int(children[0]) if children else 0
