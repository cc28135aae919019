"""Two MICs on a real cluster: however the leader is lost, the other takes over and the former one writes no more.

The API server's audit log says which pod wrote what: the token of a service account names its pod.
"""

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import upstreams
from cluster.harness import Cluster, pod, until
from cluster.programs import ONCE

ELECTION = {"leases", "endpoints"}
WRITES = {"create", "update", "patch", "delete"}
POD_NAME = "authentication.kubernetes.io/pod-name"

Out = Callable[[Cluster, str], contextlib.AbstractContextManager[None]]


@contextlib.contextmanager
def killed(installed: Cluster, name: str) -> Iterator[None]:
    """The pod's processes are killed and the pod is deleted: restarted under its name, it would still be the leader."""
    for pid in installed.processes("mic", name):
        os.kill(pid, signal.SIGKILL)
    installed.kubectl("delete", "pod", name, "--force", "--grace-period=0")
    yield


@contextlib.contextmanager
def stopped(installed: Cluster, name: str) -> Iterator[None]:
    """The pod's processes are stopped, as on a node that swaps, and continue after the body."""
    pids = installed.processes("mic", name)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):  # its liveness probe has ended it
                os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def partitioned(installed: Cluster, name: str) -> Iterator[None]:
    """The pod still receives everything, but nothing that it sends reaches the API server or Azure."""
    rule = "table inet cut { chain out { type filter hook output priority 0; tcp dport { 443, 6443 } drop; }; }"
    with open(f"/proc/{min(installed.processes('mic', name))}/ns/net", "rb") as network:  # noqa: PTH123  # a descriptor
        enter = ["nsenter", f"--net=/proc/self/fd/{network.fileno()}", "--"]

        def nft(*words: str) -> None:
            subprocess.run([*enter, "nft", *words], check=True, timeout=60, pass_fds=[network.fileno()])

        nft(rule)
        try:
            yield
        finally:
            nft("delete", "table", "inet", "cut")


@pytest.mark.parametrize("out", [killed, stopped, partitioned])
def test_another_mic_takes_over(installed: Cluster, out: Out) -> None:
    """A new pod gets its identity from the other MIC.

    Once that one leads, no write of the former leader takes effect.
    """
    identity = installed.identity(f"led-{out.__name__}")
    installed.bind(identity)
    until(lambda: len(installed.processes("mic")) == 2, "two MICs")
    before = _leader(installed)
    assert installed.processes("mic", before)
    with out(installed, before):
        installed.create(pod(identity.name, ONCE, binding=identity.name))
        until(lambda: _leader(installed) not in {before, ""}, "another leader")
        since = len(_requests_of(installed, before))
        assert json.loads(installed.result(identity.name)) == ["200", identity.client_id]
    if out is not killed:
        until(lambda: _stands_again(_requests_of(installed, before)[since:]), "the former leader")
    installed.roll_out("deployment/mic")
    assert [one for one in _requests_of(installed, before)[since:] if _has_written(one)] == []


def _leader(installed: Cluster) -> str:
    """Return the pod that holds MIC's lease, "" when none does."""
    return str(installed.get("lease", upstreams.LOCK)["spec"].get("holderIdentity") or "")


def _requests_of(installed: Cluster, name: str) -> list[dict[str, Any]]:
    return [one for one in installed.requests() if name in one["user"].get("extra", {}).get(POD_NAME, ())]


def _stands_again(requests: list[dict[str, Any]]) -> bool:
    return any(one.get("objectRef", {}).get("resource") in ELECTION for one in requests)


def _has_written(request: dict[str, Any]) -> bool:
    written = request["verb"] in WRITES and request.get("responseStatus", {}).get("code", 0) < 400
    return written and request.get("objectRef", {}).get("resource") not in {*ELECTION, "events"}
