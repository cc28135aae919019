"""The API server hangs, is slow and dies: pods go on getting their tokens, and the daemons go on where they were."""

import contextlib
import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from cluster.harness import Cluster, Identity, pod, until
from cluster.programs import KEEP_ASKING, ONCE

NODES = ("node-0", "node-1")
ANSWERS = 200  # of three threads that pause 50 ms after each: some seconds


@pytest.fixture(scope="module")
def asking(installed: Cluster) -> Iterator[Identity]:
    """A pod on each node that keeps asking on new connections."""
    made = installed.identity("serving")
    installed.bind(made)
    for node in NODES:
        installed.create(pod(f"serving-{node}", KEEP_ASKING, binding=made.name, node=node))
    for node in NODES:
        until(partial(_has_tokens, installed, node, made), f"tokens on {node}")
    yield made
    installed.delete(*(f"pod/serving-{node}" for node in NODES))


def _has_tokens(installed: Cluster, node: str, identity: Identity) -> bool:
    return f"200 {identity.client_id}" in installed.counts(f"serving-{node}")


def test_a_hanging_api_server_is_not_missed(installed: Cluster, asking: Identity) -> None:
    """It stands still for as long as each pod has hundreds of answers, all of them its own token; then all goes on."""
    server = _api_server(installed)

    def hang(answered: Callable[[], bool]) -> None:
        os.kill(server, signal.SIGSTOP)
        try:
            until(answered, "answers without an API server")
        finally:
            os.kill(server, signal.SIGCONT)

    _nothing_but_tokens(installed, asking, hang)
    _goes_on(installed, "after-hang")


def test_a_slow_api_server_is_waited_for(installed: Cluster, asking: Identity) -> None:
    """It stands still every other half second: a new pod has its token, nobody else notices."""

    def slow(answered: Callable[[], bool]) -> None:
        with _every_other(0.5, _api_server(installed)):
            _goes_on(installed, "while-slow")
            until(answered, "answers")

    _nothing_but_tokens(installed, asking, slow)


def test_a_killed_api_server_is_not_missed(installed: Cluster, asking: Identity) -> None:
    """It dies three times and comes back: no other answer, no packet past NMI, no daemon that ends."""

    def kill(answered: Callable[[], bool]) -> None:
        for _ in range(3):
            before = _api_server(installed)
            os.kill(before, signal.SIGKILL)
            until(lambda before=before: _api_server(installed) not in {before, 0}, "its successor")  # type: ignore[misc]
            until(lambda: installed.try_kubectl("get", "--raw=/readyz").returncode == 0, "it to be ready")
        until(answered, "answers")

    _nothing_but_tokens(installed, asking, kill)
    _goes_on(installed, "after-kill")


@contextlib.contextmanager
def _every_other(seconds: float, process: int) -> Iterator[None]:
    """Let a process run only every other so many seconds."""
    over = threading.Event()

    def hold_back() -> None:
        while not over.is_set():
            os.kill(process, signal.SIGSTOP)
            over.wait(seconds)
            os.kill(process, signal.SIGCONT)
            over.wait(seconds)

    with ThreadPoolExecutor(1) as threads:
        held_back = threads.submit(hold_back)
        try:
            yield
        finally:
            over.set()
            held_back.result()


def _nothing_but_tokens(installed: Cluster, asking: Identity, trouble: Callable[[Callable[[], bool]], None]) -> None:
    """Make `trouble`, which is told when there are enough answers since: they are tokens, and no daemon restarted."""
    addresses = {node: installed.pod_ip(f"serving-{node}") for node in NODES}
    started = installed.restarts()
    before = {node: _counts(installed, address) for node, address in addresses.items()}

    def gained() -> list[Counter[str]]:
        return [_counts(installed, address) - before[node] for node, address in addresses.items()]

    trouble(lambda: all(one.total() > ANSWERS for one in gained()))
    assert {status for one in gained() for status in one} == {f"200 {asking.client_id}"}
    assert installed.restarts() == started
    assert installed.imds_packets() == 0


def _goes_on(installed: Cluster, name: str) -> None:
    """Both daemons act on what is new."""
    identity = installed.identity(name)
    installed.bind(identity)
    installed.create(pod(name, ONCE, binding=name))
    result = json.loads(installed.result(name))
    assert result == ["200", identity.client_id], installed.restarts() | {"logs": _last_logs(installed)}
    installed.roll_out("daemonset/nmi")
    installed.roll_out("deployment/mic")


def _counts(installed: Cluster, address: str) -> Counter[str]:
    """Return what a pod has counted, without the API server's help."""
    status, body = installed.lab.curl(f"http://{address}:8080/")
    assert status == 200, body
    return Counter(json.loads(body))


def _api_server(installed: Cluster) -> int:
    """Its process; 0 while there is none."""
    own = f"--audit-log-path={installed.logs}/audit.log".encode()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if own in path.read_bytes().split(b"\0"):
                return int(path.parent.name)
        except OSError:
            continue
    return 0


def _last_logs(installed: Cluster) -> str:
    """Return what NMI said last: for a failure on a busy machine."""
    return installed.kubectl("logs", "-l", "component=nmi", "--tail=40", "--prefix", "--timestamps")
