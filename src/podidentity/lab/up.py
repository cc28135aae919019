"""Starts a lab and stays with it: the outer process, the only one on the host's side.

It claims the directory, opens the two loopback sockets through which the host reaches the lab, and starts the inner
process in namespaces of its own, as root or not. Nothing of the lab outlives it: the kernel kills the inner process
with it, and everything in the lab with the inner process. Called by the CLI.
"""

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from podidentity.errors import HostError, LabError
from podidentity.lab import images
from podidentity.lab.directory import Directory, claimed
from podidentity.lab.real import program, requirements
from podidentity.lab.settings import Inherited, LabSettings

READY_SECONDS = {"embedded": 60.0, "real": 300.0}
"""A real cluster takes 20 s; on a machine that is busy with other things, several times that."""
STOP_SECONDS = 8.0  # the inner process gives itself half of that
PREFLIGHT_SECONDS = 10.0

_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin"  # a user's PATH has no sbin
_PACKAGES = {
    "ip": "iproute2",
    "nft": "nftables",
    "unshare": "util-linux",
    "setpriv": "util-linux",
    "nsenter": "util-linux",
    "setsid": "util-linux",
    "flock": "util-linux",
}
_NAMESPACES = ("--net", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child=KILL", "--mount-proc")
_AS_ROOT_OF_ITS_OWN = ("--user", "--map-root-user")
_HOW_TO_ALLOW = (
    "Run the lab as root, or allow user namespaces: `sysctl -w kernel.unprivileged_userns_clone=1` (Debian), "
    "`sysctl -w kernel.apparmor_restrict_unprivileged_userns=0` (Ubuntu), `sysctl -w user.max_user_namespaces=15000` "
    "(Red Hat); a container needs --security-opt seccomp=unconfined --security-opt systempaths=unconfined."
)


def run(settings: LabSettings, ready: Callable[[Directory], None], say: Callable[[str], None]) -> None:
    """Start a lab, call `ready` once it is, and stay until Ctrl-C, SIGTERM or the lab's own end.

    `say` is told what takes long.

    Raises `HostError` when this machine cannot, `LabError` when the name is taken or the lab fails.
    """
    with contextlib.suppress(KeyboardInterrupt), running(settings, say) as lab:
        ready(lab.directory)
        lab.wait()


@contextlib.contextmanager
def running(settings: LabSettings, say: Callable[[str], None]) -> Iterator["Lab"]:
    """Have a lab for as long as the body runs; SIGTERM and SIGHUP interrupt it as Ctrl-C does. Raises as `run` does."""
    images.check()
    _check_programs()
    rootless = _needs_user_namespace()
    if settings.kubernetes == "real":
        requirements.meet(say, path=_PATH, rootless=rootless)
    with signals_interrupt(), claimed(settings.name) as (directory, lock):
        if settings.kubernetes == "real":
            leave_somebody_behind(directory)
        logs = _logs(settings, directory)
        with contextlib.ExitStack() as opened:
            inner = _start(opened, _Asked(settings, directory, logs, lock, rootless))
            try:
                _wait_until_ready(inner, logs, READY_SECONDS[settings.kubernetes])
                yield Lab(directory, logs, inner)
            finally:
                _stop(inner)


def leave_somebody_behind(lab: Directory) -> None:
    """Start a small process that outlives us, however we end, and then runs the command that removes what is left.

    The kernel ends the lab with us, but control groups are the machine's. Whoever gets the lab's lock is alone.
    """
    subprocess.run(
        [
            *("setsid", "--fork", "sh", "-c", 'flock "$1" true; exec "$2" -m podidentity lab list', "podidentity-lab"),
            *(str(lab.lock), sys.executable),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
        env={**os.environ, "PATH": _PATH},
    )


class Lab:
    """A lab that is up, for the process that started it."""

    def __init__(self, directory: Directory, logs: Path, inner: "_Inner") -> None:
        self.directory = directory
        self._logs = logs
        self._inner = inner

    def wait(self) -> None:
        """Return when somebody stopped the lab. Raises `LabError` when it failed."""
        if self._inner.process.wait():
            raise LabError(_failure(self._logs, "The lab stopped by itself."))


def patience_seconds(settings: LabSettings) -> float:
    """How long a lab may take until it is ready, what has to be built included."""
    built = settings.kubernetes == "embedded" or program.find() is not None
    return READY_SECONDS[settings.kubernetes] + (0.0 if built else program.BUILD_SECONDS)


@dataclass(frozen=True, slots=True)
class _Asked:
    """What `_start` needs, in one hand."""

    settings: LabSettings
    directory: Directory
    logs: Path
    lock: int
    rootless: bool


@dataclass(frozen=True, slots=True)
class _Inner:
    """The inner process as seen from outside. The lab ends when `lifeline` is closed."""

    process: subprocess.Popen[bytes]
    report: int
    lifeline: BinaryIO


def _start(opened: contextlib.ExitStack, asked: _Asked) -> _Inner:
    kubernetes, gateway = (opened.enter_context(_loopback_listener()) for _ in range(2))
    lifeline_read, lifeline_write = os.pipe()
    report_read, report_write = os.pipe()
    inherited = Inherited(
        settings=asked.settings,
        directory=asked.directory.path,
        logs=asked.logs,
        kubernetes_listener=kubernetes.fileno(),
        gateway_listener=gateway.fileno(),
        lifeline=lifeline_read,
        report=report_write,
        rootless=asked.rootless,
    )
    # The lock goes along: a directory is alive while any process of the lab is.
    passed = (kubernetes.fileno(), gateway.fileno(), lifeline_read, report_write, asked.lock)
    with (asked.logs / "lab.log").open("ab") as log:
        process = subprocess.Popen(
            [
                *("setpriv", "--pdeathsig", "KILL", "--", "unshare", *_own(rootless=asked.rootless), "--"),
                *(sys.executable, "-m", "podidentity.lab.inside", inherited.render()),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=passed,
            start_new_session=True,  # Ctrl-C is for us: we stop the lab in order
            env={**os.environ, "PATH": _PATH},
        )
    for descriptor in (lifeline_read, report_write):
        os.close(descriptor)
    opened.callback(os.close, report_read)
    return _Inner(process, report_read, opened.enter_context(os.fdopen(lifeline_write, "wb")))


def _wait_until_ready(inner: _Inner, logs: Path, seconds: float) -> None:
    """Wait for the inner process's word. Raises `LabError`."""
    deadline, said = time.monotonic() + seconds, b""
    while b"\n" not in said:
        readable, _, _ = select.select([inner.report], [], [], max(0.0, deadline - time.monotonic()))
        if not readable:
            raise LabError(_failure(logs, f"The lab was not ready after {seconds:g} s."))
        chunk = os.read(inner.report, 65536)
        if not chunk:
            raise LabError(_failure(logs, "The lab did not start."))
        said += chunk
    word: dict[str, Any] = json.loads(said.split(b"\n", maxsplit=1)[0])
    if "error" in word:
        raise LabError(f"The lab did not start: {word['error']}")


def _stop(inner: _Inner) -> None:
    """Ask the lab to end, and end it when it takes too long or the user is in a hurry."""
    inner.lifeline.close()
    try:
        with contextlib.suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
            inner.process.wait(STOP_SECONDS)
    finally:
        inner.process.kill()  # no time-out, no error and no second Ctrl-C leaves a lab behind
        inner.process.wait()


def _failure(logs: Path, what: str) -> str:
    """A sentence with the last thing the lab said: the log may go with the lab's directory."""
    lines = (logs / "lab.log").read_text(errors="replace").strip().splitlines()
    return f"{what} The last it said: {lines[-1] if lines else 'nothing'}"


def _logs(settings: LabSettings, directory: Directory) -> Path:
    if settings.logs is None:
        return directory.logs
    logs = settings.logs.absolute()
    try:
        logs.mkdir(parents=True, exist_ok=True)
        (logs / "lab.log").touch()
    except OSError as error:
        raise LabError(f"--logs {logs}: {error.strerror}. Give a directory that can be written to.") from None
    return logs


def _loopback_listener() -> socket.socket:
    opened = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    opened.bind(("127.0.0.1", 0))
    opened.listen()
    opened.setblocking(False)
    return opened


@contextlib.contextmanager
def signals_interrupt() -> Iterator[None]:
    """A `kill`, or the terminal's end, is the same as Ctrl-C."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, interrupt) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _check_programs() -> None:
    missing = [program for program in _PACKAGES if shutil.which(program, path=_PATH) is None]
    if missing:
        packages = " ".join(sorted({_PACKAGES[program] for program in missing}))
        raise HostError(f"The lab needs {', '.join(missing)}: apt-get install {packages}")


def _needs_user_namespace() -> bool:
    """Whether the lab needs a user namespace; root inside a container may need one, too. Raises `HostError`."""
    said = ""
    for rootless in (False, True) if os.geteuid() == 0 else (True,):
        tried = subprocess.run(
            ["unshare", *_own(rootless=rootless), "--", "ip", "link", "set", "lo", "up"],
            capture_output=True,
            text=True,
            check=False,
            timeout=PREFLIGHT_SECONDS,
            env={**os.environ, "PATH": _PATH},
        )
        if tried.returncode == 0:
            return rootless
        said = (tried.stderr.strip().splitlines() or ["nothing"])[-1]
    raise HostError(f"This kernel does not let you make the lab's namespaces ({said}). {_HOW_TO_ALLOW}")


def _own(*, rootless: bool) -> tuple[str, ...]:
    return (*_AS_ROOT_OF_ITS_OWN, *_NAMESPACES) if rootless else _NAMESPACES
