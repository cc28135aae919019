"""Starts a lab and stays with it: the outer process, the only one on the host's side.

It claims the directory, opens the sockets through which the host reaches the lab, and starts the inner
process in namespaces of its own, as root or not. Nothing of the lab outlives it: the kernel kills the inner process
with it, and everything in the lab with the inner process.
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
from podidentity_lab import images, seed
from podidentity_lab.callers import Callers
from podidentity_lab.directory import Directory, claimed
from podidentity_lab.real import program, requirements
from podidentity_lab.settings import Inheritance, LabSettings

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
    "run the lab as root, or allow user namespaces: `sysctl -w kernel.unprivileged_userns_clone=1` (Debian), "
    "`sysctl -w kernel.apparmor_restrict_unprivileged_userns=0` (Ubuntu), `sysctl -w user.max_user_namespaces=15000` "
    "(Red Hat); a container needs --security-opt seccomp=unconfined --security-opt systempaths=unconfined"
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
    if settings.seed:
        seed.read(settings.seed)  # what is wrong with it is to be said before anything starts
    _check_programs()
    rootless = _needs_user_namespace()
    if settings.kubernetes == "real":
        requirements.meet(say, path=_PATH, rootless=rootless)
    with signals_interrupt(), claimed(settings.name) as (directory, lock):
        if settings.kubernetes == "real":
            leave_somebody_behind(directory)
        logs = _logs(settings, directory)
        with contextlib.ExitStack() as stack:
            inner = _start(stack, _Start(settings, directory, logs, lock, rootless))
            try:
                _wait_until_ready(inner, logs, READY_SECONDS[settings.kubernetes])
                yield Lab(directory, logs, inner)
            finally:
                _stop(inner)


def leave_somebody_behind(lab: Directory) -> None:
    """Start a small process that outlives us, however we end, and then runs the command that removes what is left.

    The kernel ends the lab with us, but control groups belong to the machine. The process waits for the lab's lock:
    who gets it knows that no other process of the lab is left.
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
            raise LabError(_failure(self._logs, "the lab stopped by itself"))


def patience_seconds(settings: LabSettings) -> float:
    """Return how long a lab may take until it is ready, what has to be built included."""
    needs_no_build = settings.kubernetes == "embedded" or program.find() is not None
    return READY_SECONDS[settings.kubernetes] + (0.0 if needs_no_build else program.BUILD_SECONDS)


@dataclass(frozen=True, slots=True)
class _Start:
    """What `_start` needs."""

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


def _start(stack: contextlib.ExitStack, start: _Start) -> _Inner:
    places = (*start.settings.addresses(), ("127.0.0.1", 0))  # the registry is for this host alone
    kubernetes, gateway, identities, registry = (stack.enter_context(_listener(*place)) for place in places)
    callers = stack.enter_context(contextlib.closing(Callers.of_this_host()))
    lifeline_read, lifeline_write = os.pipe()
    report_read, report_write = os.pipe()
    inheritance = Inheritance(
        settings=start.settings,
        directory=start.directory.path,
        logs=start.logs,
        kubernetes_listener=kubernetes.fileno(),
        gateway_listener=gateway.fileno(),
        identity_listener=identities.fileno(),
        registry_listener=registry.fileno(),
        owner=callers.owner,
        diagnosis=callers.diagnosis.fileno(),
        table=callers.table,
        lifeline=lifeline_read,
        report=report_write,
        rootless=start.rootless,
    )
    # The lock goes along: a directory is alive while any process of the lab is.
    listeners = (kubernetes.fileno(), gateway.fileno(), identities.fileno(), registry.fileno())
    passed = (*listeners, *callers.descriptors(), lifeline_read, report_write, start.lock)
    with (start.logs / "lab.log").open("ab") as log:
        process = subprocess.Popen(
            [
                *("setpriv", "--pdeathsig", "KILL", "--", "unshare", *_unshare_command(rootless=start.rootless), "--"),
                *(sys.executable, "-m", "podidentity_lab.inside", inheritance.render()),
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
    stack.callback(os.close, report_read)
    return _Inner(process, report_read, stack.enter_context(os.fdopen(lifeline_write, "wb")))


def _wait_until_ready(inner: _Inner, logs: Path, seconds: float) -> None:
    """Wait until the inner process reports that the lab is ready. Raises `LabError` with its sentence, or the log's."""
    deadline, output = time.monotonic() + seconds, b""
    while b"\n" not in output:
        readable, _, _ = select.select([inner.report], [], [], max(0.0, deadline - time.monotonic()))
        if not readable:
            raise LabError(_failure(logs, f"the lab was not ready after {seconds:g} s"))
        chunk = os.read(inner.report, 65536)
        if not chunk:
            raise LabError(_failure(logs, "the lab did not start"))
        output += chunk
    word: dict[str, Any] = json.loads(output.split(b"\n", maxsplit=1)[0])
    if "error" in word:
        raise LabError(f"the lab did not start: {word['error']}")


def _stop(inner: _Inner) -> None:
    """Ask the lab to end, and end it when it takes too long or the user is in a hurry."""
    inner.lifeline.close()
    try:
        with contextlib.suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
            inner.process.wait(STOP_SECONDS)
    finally:
        inner.process.kill()  # no time-out, no error and no second Ctrl-C leaves a lab behind
        inner.process.wait()


def _failure(logs: Path, message: str) -> str:
    """Return a sentence with the last line of the lab's log, which may be removed with the lab's directory."""
    lines = (logs / "lab.log").read_text(errors="replace").strip().splitlines()
    return f"{message}; the last line of its log: {lines[-1] if lines else 'there is none'}"


def _logs(settings: LabSettings, directory: Directory) -> Path:
    if settings.logs is None:
        return directory.logs
    logs = settings.logs.absolute()
    try:
        logs.mkdir(parents=True, exist_ok=True)
        (logs / "lab.log").touch()
    except OSError as error:
        raise LabError(f"--logs {logs}: {error.strerror}; give a directory that can be written to") from None
    return logs


def _listener(address: str, port: int) -> socket.socket:
    listening_socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening_socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening_socket.bind((address, port))
    except (OSError, OverflowError) as error:
        listening_socket.close()
        reason = error.strerror if isinstance(error, OSError) else "it is too high"
        raise LabError(f"--listen {address}: port {port}: {reason}; name another port") from None
    listening_socket.listen()
    listening_socket.setblocking(False)
    return listening_socket


@contextlib.contextmanager
def signals_interrupt() -> Iterator[None]:
    """Have SIGTERM and SIGHUP (`kill`, a closed terminal) interrupt the body as Ctrl-C does."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    numbers = (signal.SIGTERM, signal.SIGHUP)
    handlers = [signal.signal(number, interrupt) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, handlers, strict=True):
            signal.signal(number, handler)


def _check_programs() -> None:
    missing = [program for program in _PACKAGES if shutil.which(program, path=_PATH) is None]
    if missing:
        packages = " ".join(sorted({_PACKAGES[program] for program in missing}))
        raise HostError(f"the lab needs {', '.join(missing)}; apt-get install {packages}")


def _needs_user_namespace() -> bool:
    """Whether the lab needs a user namespace; root inside a container may need one, too. Raises `HostError`."""
    reason = ""
    for rootless in (False, True) if os.geteuid() == 0 else (True,):
        tried = subprocess.run(
            ["unshare", *_unshare_command(rootless=rootless), "--", "ip", "link", "set", "lo", "up"],
            capture_output=True,
            text=True,
            check=False,
            timeout=PREFLIGHT_SECONDS,
            env={**os.environ, "PATH": _PATH},
        )
        if tried.returncode == 0:
            return rootless
        reason = (tried.stderr.strip().splitlines() or ["nothing"])[-1]
    raise HostError(f"this kernel does not let you make the lab's namespaces ({reason}); {_HOW_TO_ALLOW}")


def _unshare_command(*, rootless: bool) -> tuple[str, ...]:
    return (*_AS_ROOT_OF_ITS_OWN, *_NAMESPACES) if rootless else _NAMESPACES
