"""The API server hangs, is slow or is killed: pods still get their tokens, and the daemons continue afterwards."""

import contextlib
import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from cluster.harness import Cluster, Identity, pod, until
from cluster.programs import KEEP_ASKING, ONCE
from processes import command_lines

NODES = ("node-0", "node-1")
ANSWERS = 200  # of three threads that pause 50 ms after each: some seconds


@pytest.fixture(scope="module")
def asking(installed: Cluster) -> Iterator[Identity]:
    """A pod on each node that asks for a token again and again, each time on a new connection."""
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
    """While the API server is stopped, each pod gets hundreds of answers, all with its own token.

    Then new pods are served.
    """
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
    """While the API server stops every other half second, a new pod gets its token and other pods get theirs."""

    def slow(answered: Callable[[], bool]) -> None:
        with _every_other(0.5, _api_server(installed)):
            _goes_on(installed, "while-slow")
            until(answered, "answers")

    _nothing_but_tokens(installed, asking, slow)


def test_a_killed_api_server_is_not_missed(installed: Cluster, asking: Identity) -> None:
    """When the API server is killed three times, pods get tokens only, no packet passes NMI, and no daemon restarts."""

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
    """Let a process run and stop it in turn, `seconds` each."""
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
    """Run `trouble`; then hold that all answers since were tokens and that no daemon restarted.

    `trouble` gets a function that says whether each pod has had enough answers since the beginning.
    """
    _let_updates_end(installed)
    addresses = {node: installed.pod_ip(f"serving-{node}") for node in NODES}
    started = installed.restarts()
    before = {node: _counts(installed, address) for node, address in addresses.items()}

    def gained() -> list[Counter[str]]:
        return [_counts(installed, address) - before[node] for node, address in addresses.items()]

    trouble(lambda: all(one.total() > ANSWERS for one in gained()))
    assert {status for one in gained() for status in one} == {f"200 {asking.client_id}"}
    assert installed.restarts() == started
    assert installed.imds_packets() == 0


def _let_updates_end(installed: Cluster) -> None:
    """Wait until an update that an earlier test caused has replaced its last pod."""
    installed.roll_out("daemonset/nmi")
    installed.roll_out("deployment/mic")
    nodes = installed.get("daemonset/nmi")["status"]["desiredNumberScheduled"]
    until(lambda: len(installed.restarts("nmi")) == nodes, "one pod of NMI for each node")


def _goes_on(installed: Cluster, name: str) -> None:
    """Hold that a new identity and pod are served, which needs both daemons."""
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
    """Return the process ID of the API server; 0 while there is none."""
    own = f"--audit-log-path={installed.logs}/audit.log".encode()
    return next((pid for pid, words in command_lines().items() if own in words), 0)


def _last_logs(installed: Cluster) -> str:
    """Return the last lines of NMI's logs, for the message of a failure."""
    return installed.kubectl("logs", "-l", "component=nmi", "--tail=40", "--prefix", "--timestamps")
