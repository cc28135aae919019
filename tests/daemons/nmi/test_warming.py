"""Tokens that NMI fetches from the broker while a pod's containers are being started, on real sockets."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import make
from daemons.broker import harness as brokers
from daemons.nmi.harness import TARGET, Serving, pod
from daemons.nmi.test_broker import both, identity
from loops import anyio_backend  # noqa: F401  # all tests here run on uvloop
from podidentity.core.model.identities import AssignedState
from podidentity.core.model.snapshot import Pod
from podidentity.issuance.fairness import FairQuota
from podidentity.nmi.warming import (
    LONGEST_SECONDS,
    PAUSE_SECONDS,
    PODS,
    PODS_PER_NAMESPACE,
    REQUESTS_PER_ACCOUNT,
    RETRY_SECONDS,
    STARTED_SECONDS,
)
from waiting import eventually, settle

OTHER_TARGET = TARGET.replace("vault.azure.net", "storage.azure.com")


@contextlib.asynccontextmanager
async def experienced(folder: Path, *targets: str) -> AsyncIterator[tuple[Serving, brokers.Broker]]:
    """Serve NMI and a broker; a pod of the service account `cart` has asked for tokens, and is gone.

    From then on NMI's longer pauses wait for a test.
    """
    async with both(folder) as (nmi, broker):
        broker.cluster.grant("default/cart")
        first = schedule(nmi, broker, "first", phase="Running")
        for target in targets or (TARGET,):
            assert (await nmi.ask(target)).status == 200
        nmi.cluster.remove(first)
        nmi.clock.hasty_below = 1.0
        try:
            yield nmi, broker
        finally:
            for remaining in tuple(nmi.cluster.pods):
                nmi.cluster.remove(remaining)


def schedule(
    nmi: Serving,
    broker: brokers.Broker,
    name: str,
    *,
    account: str = "cart",
    phase: str = "Pending",
    host: bool = False,
) -> Pod:
    """Let a pod with the identity be scheduled on the node, as NMI and the broker see it."""
    addresses = pod().ips if phase == "Running" else ()
    scheduled = replace(pod(name), phase=phase, ips=addresses, service_account=account, host_network=host)
    broker.cluster.add_pod(str(scheduled.key), account, "n1", uid=scheduled.uid, phase=phase)
    nmi.cluster.add(scheduled, identity())
    return scheduled


def start(nmi: Serving, scheduled: Pod) -> Pod:
    """Let a pod's containers start."""
    running = replace(scheduled, phase="Running", ips=pod().ips)
    nmi.cluster.pods[nmi.cluster.pods.index(scheduled)] = running
    nmi.cluster.follower.pod_changed(running.key)
    return running


def calls(nmi: Serving) -> int:
    """Return how often NMI has called the broker."""
    name = "aadpodidentity_imds_operations_duration_seconds_count"
    return int(nmi.registry.get_sample_value(name, {"operation_type": "broker_token"}) or 0)


async def has_called(nmi: Serving, number: int, pods: int = 1) -> None:
    """Wait until NMI has called the broker so often, and does nothing more until time passes."""
    await eventually(
        lambda: calls(nmi) == number and nmi.clock.waiting == pods,
        lambda: f"{number} calls: there were {calls(nmi)}, and {nmi.clock.waiting} pods are warm",
    )


async def stays_at(nmi: Serving, number: int) -> None:
    """Check that NMI makes no further call to the broker in the longest time for which a pod is warmed."""
    for _ in range(int(LONGEST_SECONDS / PAUSE_SECONDS)):
        nmi.clock.jump(PAUSE_SECONDS)
        await settle()
    assert calls(nmi) == number
    assert nmi.clock.waiting == 0


async def test_a_pods_tokens_are_there_when_its_container_starts(tmp_path: Path) -> None:
    """A pod finds a token for each resource that an earlier pod of its account asked for, without the broker."""
    async with experienced(tmp_path, TARGET, OTHER_TARGET) as (nmi, broker):
        scheduled = schedule(nmi, broker, "web")
        await has_called(nmi, 4)
        start(nmi, scheduled)
        (tmp_path / "token").unlink()  # without which the broker cannot be asked
        for target in (TARGET, OTHER_TARGET):
            assert (await nmi.ask(target)).status == 200


async def test_tokens_are_kept_fresh_while_an_image_is_pulled(tmp_path: Path) -> None:
    """NMI keeps a broker's token for 20 s, so it fetches one again and again until the container starts."""
    async with experienced(tmp_path) as (nmi, broker):
        scheduled = schedule(nmi, broker, "web")
        await has_called(nmi, 2)
        for round_number in range(10):
            nmi.clock.jump(PAUSE_SECONDS)
            await has_called(nmi, 3 + round_number)
        start(nmi, scheduled)
        (tmp_path / "token").unlink()
        assert (await nmi.ask()).status == 200


async def test_warming_ends_when_the_program_has_had_its_time(tmp_path: Path) -> None:
    """NMI stops fetching ahead some time after the container's start: the pod's own requests keep its token fresh."""
    async with experienced(tmp_path) as (nmi, broker):
        scheduled = schedule(nmi, broker, "web")
        await has_called(nmi, 2)
        start(nmi, scheduled)
        for _ in range(int(STARTED_SECONDS / PAUSE_SECONDS)):
            nmi.clock.jump(PAUSE_SECONDS)
            await has_called(nmi, calls(nmi) + 1)
        nmi.clock.jump(PAUSE_SECONDS * 2)
        await eventually(lambda: nmi.clock.waiting == 0, "the end")
        await stays_at(nmi, calls(nmi))


async def test_warming_ends_with_its_pod(tmp_path: Path) -> None:
    """A pod that was deleted, or is about to end, needs no token."""
    async with experienced(tmp_path) as (nmi, broker):
        scheduled = schedule(nmi, broker, "web")
        await has_called(nmi, 2)
        nmi.cluster.remove(scheduled)
        await eventually(lambda: nmi.clock.waiting == 0, "the end")
        scheduled = schedule(nmi, broker, "other")
        await has_called(nmi, 3)
        nmi.cluster.pods[:] = [replace(scheduled, ending=True)]
        nmi.cluster.follower.pod_changed(scheduled.key)
        await stays_at(nmi, 3)


async def test_a_pod_that_never_starts_is_warmed_for_a_limited_time(tmp_path: Path) -> None:
    """A pod whose image cannot be pulled is warmed for a limited time, however often its status changes."""
    async with experienced(tmp_path) as (nmi, broker):
        scheduled = schedule(nmi, broker, "web")
        await has_called(nmi, 2)
        nmi.clock.jump(LONGEST_SECONDS)
        await eventually(lambda: nmi.clock.waiting == 0, "the end")
        number = calls(nmi)
        nmi.cluster.follower.pod_changed(scheduled.key)
        await stays_at(nmi, number)


async def test_only_pods_that_are_about_to_start_are_warmed(tmp_path: Path) -> None:
    """Running pods, pods of an account that has not asked yet, and pods on the node's network are not warmed."""
    async with experienced(tmp_path) as (nmi, broker):
        schedule(nmi, broker, "running", phase="Running")
        schedule(nmi, broker, "another-account", account="other")
        schedule(nmi, broker, "on-the-host", host=True)
        await stays_at(nmi, 1)


async def test_identities_of_machines_are_not_warmed(tmp_path: Path) -> None:
    """Tokens of managed identities are not fetched ahead: IMDS answers at once, and only few requests a second."""
    async with experienced(tmp_path) as (nmi, _broker):
        machine = replace(pod("machine"), service_account="machine")
        nmi.cluster.add(machine, make.identity())
        assert (await nmi.ask()).status == 200
        nmi.cluster.remove(machine)
        nmi.cluster.add(replace(machine, uid="other", phase="Pending", ips=()), make.identity())
        requests = len(nmi.imds.requests)
        await stays_at(nmi, 1)
        assert len(nmi.imds.requests) == requests


async def test_a_binding_and_a_grant_may_come_later_than_the_pod(tmp_path: Path) -> None:
    """A late binding or grant is noticed within seconds; without a grant a warm pod is refused like any other."""
    async with experienced(tmp_path) as (nmi, broker):
        broker.cluster.grants.clear()
        broker.clock.jump(60)  # the broker remembers a grant for 30 s
        scheduled = replace(pod("web"), phase="Pending", ips=(), service_account="cart")
        broker.cluster.add_pod(str(scheduled.key), "cart", "n1", uid=scheduled.uid)
        nmi.cluster.add(scheduled)
        nmi.cluster.follower.pod_changed(scheduled.key)
        await has_called(nmi, 1)
        nmi.cluster.assign(scheduled, identity(), AssignedState.ASSIGNED)
        nmi.clock.jump(RETRY_SECONDS)
        await has_called(nmi, 2)
        running = start(nmi, scheduled)
        assert (await nmi.ask()).status == 400
        broker.cluster.grant("default/cart")
        broker.clock.jump(60)
        nmi.clock.jump(RETRY_SECONDS)
        await has_called(nmi, 3)
        (tmp_path / "token").unlink()
        assert (await nmi.ask()).status == 200
        assert running in nmi.cluster.pods


async def test_a_bug_in_warming_ends_it_alone(tmp_path: Path) -> None:
    """After a bug in warming a pod, NMI goes on answering requests."""
    async with experienced(tmp_path) as (nmi, broker):
        scheduled = schedule(nmi, broker, "web")
        await has_called(nmi, 2)
        assigned_to = nmi.cluster.assigned_to
        nmi.cluster.assigned_to = None  # type: ignore[assignment,method-assign]
        nmi.cluster.notify()
        nmi.clock.jump(PAUSE_SECONDS)
        await eventually(lambda: nmi.clock.waiting == 0, "the end")
        nmi.cluster.assigned_to = assigned_to  # type: ignore[method-assign]
        start(nmi, scheduled)
        assert (await nmi.ask()).status == 200


async def test_what_is_remembered_and_who_is_warmed_is_bounded(tmp_path: Path) -> None:
    """NMI warms the last few resources of a service account, and a limited number of pods of each namespace."""
    targets = [f"{TARGET}/{number}" for number in range(REQUESTS_PER_ACCOUNT + 2)]
    async with experienced(tmp_path, *targets) as (nmi, broker):
        scheduled = schedule(nmi, broker, "web")
        await has_called(nmi, len(targets) + REQUESTS_PER_ACCOUNT)
        nmi.cluster.remove(scheduled)
    async with experienced(tmp_path) as (nmi, broker):
        for number in range(PODS_PER_NAMESPACE * 2):
            schedule(nmi, broker, f"web-{number}")
        quota, number = FairQuota(PODS, PODS_PER_NAMESPACE), 0
        while not quota.is_full("default"):
            quota.take("default")
            number += 1
        assert number <= PODS_PER_NAMESPACE
        await has_called(nmi, 1 + number, number)
