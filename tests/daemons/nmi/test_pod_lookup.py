"""Which pod is behind a connection: by what the watch says, what the API server says, and where packets come in.

Whole requests take the same way in test_tokens.py; here the rule of each step stands alone.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

import make
from clocks import START_SECONDS, JumpingClock
from podidentity.core.model.snapshot import Pod
from podidentity.core.tokens.imds import Refusal
from podidentity.errors import KubernetesError, NotFoundError, UnreachableError
from podidentity.nmi.pod_lookup import DirectLookup, NeedsLookup, PodLookup, UnknownPeer
from podidentity.nmi.ports import MOVED_SECONDS, WATCH_TRUSTED_SECONDS, Peer
from waiting import eventually

ADDRESS = "10.0.0.1"
WEB = replace(make.pod("web"), ips=(ADDRESS,))
OTHER = replace(make.pod("other"), ips=(ADDRESS,))
HARDWARE = b"\x02\x00\x00\x00\x00\x01"
Outcome = Pod | NeedsLookup | UnknownPeer | Refusal


class Cluster:
    """A watch that is as true as a test says, and an API server that answers when `gate` is open."""

    def __init__(self) -> None:
        self.clock = JumpingClock()
        self.pods: tuple[Pod, ...] = (WEB,)
        self.heard_at = START_SECONDS
        self.api: tuple[Pod, ...] | KubernetesError = (WEB,)
        self.looks: list[str] = []
        self.at_once = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.pod_lookup = PodLookup(self, self.clock)

    def with_address(self, address: str) -> Sequence[Pod]:
        """Return the pods that the watch knows at an address."""
        return tuple(pod for pod in self.pods if address in pod.ips)

    def confirmed_at(self) -> float:
        """Return when the watch was last heard."""
        return self.heard_at

    async def look(self, address: str) -> Sequence[Pod]:
        """Return the pods that the API server knows, once `gate` is open."""
        self.looks.append(address)
        self.at_once += 1
        await self.gate.wait()
        self.at_once -= 1
        if isinstance(self.api, KubernetesError):
            raise self.api
        return self.api

    def find(self, peer: Peer, *direct: Pod) -> Outcome:
        """Return which pod a peer is, given the pods that a direct look has just returned."""
        return self.pod_lookup.pod_of(peer, DirectLookup(direct) if direct else None, self.clock.steady())


def peer(interface: int = 0, hardware: bytes | None = HARDWARE) -> Peer:
    """Build the peer of a connection; interface 0 means that the kernel does not say where its packets come in."""
    return Peer(ADDRESS, (interface, hardware) if interface else None)


def message(outcome: object, status: int = 503) -> str:
    """Return the sentence of a refusal."""
    assert isinstance(outcome, Refusal)
    assert outcome.status == status
    return outcome.message


def test_a_watch_is_trusted_for_its_time_and_not_a_moment_longer() -> None:
    """After that time the API server is asked which pod has the address; if it knows none, the peer is unknown."""
    cluster = Cluster()
    cluster.clock.jump(WATCH_TRUSTED_SECONDS)
    assert cluster.find(peer()) is WEB
    cluster.clock.jump(0.5)
    assert cluster.find(peer()) == NeedsLookup("the watch of pods has been silent for too long")
    assert cluster.find(peer(), WEB) is WEB
    nobody = cluster.pod_lookup.pod_of(peer(), DirectLookup(), cluster.clock.steady())
    assert nobody == UnknownPeer(ADDRESS)
    assert nobody.message == "no pod of this node has the address 10.0.0.1"


def test_before_the_first_list_nobody_is_anybody() -> None:
    """Before the first list every address gets 503, even after a direct look."""
    cluster = Cluster()
    cluster.heard_at = -float("inf")
    assert "not known yet" in message(cluster.find(peer()))
    assert "not known yet" in message(cluster.pod_lookup.pod_of(peer(), DirectLookup(), cluster.clock.steady()))


def test_an_unknown_address_is_looked_up_and_then_unknown() -> None:
    """An address is unknown after a look without result, unless the watch has learned of its pod meanwhile."""
    cluster = Cluster()
    cluster.pods = ()
    assert cluster.find(peer()) == NeedsLookup("no pod is known at 10.0.0.1")
    assert cluster.pod_lookup.pod_of(peer(), DirectLookup(), START_SECONDS) == UnknownPeer(ADDRESS)
    cluster.pods = (WEB,)
    assert cluster.pod_lookup.pod_of(peer(), DirectLookup(), START_SECONDS) is WEB


def test_an_address_of_two_is_nobodys_and_both_are_named() -> None:
    """The refusal names both pods that claim the address, in the same order whichever came first."""
    cluster = Cluster()
    for pods in ((WEB, OTHER), (OTHER, WEB)):
        cluster.pods = pods
        assert message(cluster.find(peer())).startswith(
            "default/other and default/web both claim the address 10.0.0.1;"
        )


def test_a_connection_is_one_pods_for_its_whole_life() -> None:
    """If the watch has another pod at the address, the API server is asked; if it agrees, the request is refused."""
    cluster = Cluster()
    connection = peer()
    assert cluster.find(connection) is WEB
    assert connection.uid == WEB.uid
    assert cluster.find(connection) is WEB
    cluster.pods = (OTHER,)
    assert cluster.find(connection) == NeedsLookup("the pod at 10.0.0.1 is another one")
    assert "began as another pod's" in message(cluster.find(connection, OTHER))
    assert cluster.find(connection, WEB) is WEB
    assert cluster.find(peer()) is OTHER


@pytest.mark.parametrize("elsewhere", [(3, HARDWARE), (2, b"\x02\x00\x00\x00\x00\x02")])
def test_packets_come_in_where_they_came_in_first(elsewhere: tuple[int, bytes]) -> None:
    """From another interface or hardware address a pod is refused, even if the API server says that it lives."""
    cluster = Cluster()
    assert cluster.find(peer(2)) is WEB
    assert cluster.find(peer(2)) is WEB
    assert cluster.find(peer(*elsewhere)) == NeedsLookup("10.0.0.1 is now somewhere else on this node")
    assert "has moved but still belongs to pod default/web" in message(cluster.find(peer(*elsewhere), WEB))
    cluster.pod_lookup.release(WEB.uid)
    assert cluster.find(peer(*elsewhere)) is WEB


def test_a_hardware_address_that_the_kernel_lost_proves_nothing_and_binds_nobody() -> None:
    """Without a hardware address only a route or a port of its own proves a pod; the pod is bound to no interface."""
    cluster = Cluster()
    assert "cannot be told of this connection" in message(cluster.find(peer(2, None)))
    assert "cannot be told of this connection" in message(cluster.find(peer(2, None), WEB))
    cluster.pod_lookup.hold(frozenset({WEB.uid}))
    assert cluster.find(peer(2, None)) is WEB
    assert cluster.find(peer(3)) is WEB
    cluster.pod_lookup.hold(frozenset({OTHER.uid}))
    assert message(cluster.find(peer(3, None)))
    cluster.pod_lookup.release(WEB.uid)
    cluster.pod_lookup.expect(WEB.uid, 5)
    assert cluster.find(peer(5, None)) is WEB
    assert message(cluster.find(peer(6, None)))


def test_a_route_says_where_a_pod_comes_in_before_it_asks() -> None:
    """A pod's route binds it to the first interface reported: from another it is refused, even at its first request."""
    cluster = Cluster()
    cluster.pod_lookup.expect(WEB.uid, 5)
    cluster.pod_lookup.expect(WEB.uid, 6)
    assert isinstance(cluster.find(peer(6)), NeedsLookup)
    assert "has moved" in message(cluster.find(peer(6), WEB))
    assert cluster.find(peer(5)) is WEB


def moved(cluster: Cluster, *reports: tuple[float, int], pod: Pod = WEB, interface: int = 6) -> bool:
    """Report a pod's interfaces, each after so many seconds; return whether the pod is then believed at one of them."""
    for seconds, number in reports:
        cluster.clock.jump(seconds)
        cluster.pod_lookup.expect(pod.uid, number)
    return cluster.find(peer(interface), pod) is pod


def test_a_sandbox_that_was_made_anew_is_believed_after_a_minute_at_one_place() -> None:
    """After a minute at a new interface a pod is believed if a look confirms that it lives; the watch is not enough."""
    cluster = Cluster()
    assert not moved(cluster, (0, 5), (10, 6), (MOVED_SECONDS - 1, 6))
    cluster.clock.jump(1)
    assert isinstance(cluster.find(peer(6)), NeedsLookup)
    assert not isinstance(cluster.find(peer(7), WEB), Pod)
    connection = peer(6)
    assert cluster.find(connection, WEB) is WEB
    assert connection.uid == WEB.uid
    assert cluster.find(peer(6)) is WEB
    assert not isinstance(cluster.find(peer(5)), Pod)


@pytest.mark.parametrize(
    "reports",
    [
        ((0.0, 5), (0.0, 6), (30.0, 7), (MOVED_SECONDS - 1, 6)),
        ((0.0, 5), (0.0, 6), (30.0, 5), (MOVED_SECONDS - 1, 6)),
        ((0.0, 5), (MOVED_SECONDS, 5)),
    ],
    ids=["a third place between", "back between", "never there"],
)
def test_the_minute_begins_anew_with_each_other_place(reports: tuple[tuple[float, int], ...]) -> None:
    """Each report of another interface starts the minute again, so a neighbour's short claims do not add up."""
    assert not moved(Cluster(), *reports)


def test_a_pod_that_is_ending_has_not_moved() -> None:
    """A pod that is being deleted is not believed at a new interface: its address may be another pod's by now."""
    cluster = Cluster()
    ending = replace(WEB, ending=True)
    assert not moved(cluster, (0, 5), (0, 6), (MOVED_SECONDS, 6), pod=ending)
    assert moved(cluster, (0, 6))


async def test_a_look_from_before_a_pod_went_is_not_believed() -> None:
    """A pod that is gone from the watch is left out of a look's answer, which may be older; a pod still in it stays."""
    cluster = Cluster()
    assert await cluster.pod_lookup.look(peer()) == DirectLookup((WEB,))
    cluster.pod_lookup.forget(WEB.uid)
    assert await cluster.pod_lookup.look(peer()) == DirectLookup((WEB,)), "the watch knows it still"
    cluster.pods = ()
    assert await cluster.pod_lookup.look(peer()) == DirectLookup()
    cluster.api = (WEB, OTHER)
    cluster.clock.jump(2)
    assert await cluster.pod_lookup.look(peer()) == DirectLookup((OTHER,))


async def test_a_look_serves_all_who_ask_within_a_second() -> None:
    """One look, even a failed one, serves an address's requests of a second, so a loop costs one list a second."""
    cluster = Cluster()
    for failure, words in ((UnreachableError("no answer"), "no answer"), (NotFoundError("none"), "")):
        cluster.clock.jump(5)
        cluster.looks.clear()
        cluster.api = failure
        outcomes = [await cluster.pod_lookup.look(peer()) for _ in range(3)]
        cluster.clock.jump(0.5)
        outcomes.append(await cluster.pod_lookup.look(peer()))
        if words:
            assert all(
                message(outcome) == "the API server cannot say who has 10.0.0.1: no answer" for outcome in outcomes
            )
        else:
            assert outcomes == [DirectLookup()] * 4
        assert cluster.looks == [ADDRESS]
        cluster.clock.jump(0.5)
        await cluster.pod_lookup.look(peer())
        assert cluster.looks == [ADDRESS] * 2


async def test_looks_are_few_at_a_time_and_their_queue_has_an_end() -> None:
    """Four looks run at once and 256 addresses wait; a further address is refused without a call to the API server."""
    cluster = Cluster()
    cluster.gate.clear()
    peers = [Peer(f"10.1.{number // 250}.{number % 250}") for number in range(256)]
    looks = [asyncio.create_task(cluster.pod_lookup.look(one)) for one in peers]
    same = asyncio.create_task(cluster.pod_lookup.look(peers[0]))
    await eventually(lambda: cluster.at_once == 4, "four lists")
    assert "too many unknown addresses" in message(await cluster.pod_lookup.look(peer()))
    assert len(cluster.looks) == 4
    cluster.gate.set()
    assert all(isinstance(outcome, DirectLookup) for outcome in await asyncio.gather(*looks))
    assert len(cluster.looks) == 256
    same.cancel()
