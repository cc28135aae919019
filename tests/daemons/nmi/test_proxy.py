"""What is passed on to IMDS: a few requests at a time, the pods in turn, and no endless answer."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

from clocks import JumpingClock
from daemons.nmi.harness import Serving, serving
from daemons.nmi.imds import ImdsRequest, Reply, StandInImds
from podidentity.core.tokens.imds import Forward
from podidentity.nmi import proxy
from podidentity.nmi.adapters.imds import open_imds_client
from podidentity.nmi.proxy import Proxy
from waiting import eventually

INSTANCE = Forward("/metadata/instance?api-version=2021-02-01")
DOCUMENT = "/metadata/instance?api-version=2021-02-01"


class PassingOn(NamedTuple):
    """A proxy in front of a stand-in for IMDS, by a clock of its own."""

    proxy: Proxy
    imds: StandInImds
    clock: JumpingClock


@asynccontextmanager
async def passing_on() -> AsyncIterator[PassingOn]:
    """Yield a fresh proxy."""
    clock = JumpingClock()
    async with asyncio.timeout(100), StandInImds().listening() as imds, open_imds_client("test") as http:
        yield PassingOn(Proxy(http, f"http://127.0.0.1:{imds.port}", clock), imds, clock)


async def test_one_pod_cannot_hold_all_places() -> None:
    """Of a hundred requests of one pod all but its share are refused, and a neighbour's request is answered."""
    async with passing_on() as (passing, imds, _):
        imds.gate = asyncio.Event()
        greedy = [asyncio.create_task(passing.forward(INSTANCE, "10.0.0.1")) for _ in range(100)]
        refusals = 100 - proxy._QUEUE_OF_A_POD
        await eventually(lambda: sum(task.done() for task in greedy) == refusals, "all but the pod's share are refused")
        other = asyncio.create_task(passing.forward(INSTANCE, "10.0.0.2"))
        await asyncio.sleep(0)
        assert not other.done()
        imds.gate.set()
        assert (await other).status == 200
        assert sorted({(await task).status for task in greedy}) == [200, 503]
        assert (await passing.forward(INSTANCE, "10.0.0.1")).status == 200


async def test_many_pods_leave_room_for_the_next() -> None:
    """Twenty pods take as many places as they are given, and a pod that asks after them still gets one."""
    async with passing_on() as (passing, imds, _):
        imds.gate = asyncio.Event()
        greedy = [
            asyncio.create_task(passing.forward(INSTANCE, f"10.0.0.{pod}"))
            for _ in range(proxy._QUEUE_OF_A_POD)
            for pod in range(20)
        ]
        await eventually(lambda: imds.at_once == proxy._AT_ONCE, "IMDS has all that it may have")
        other = asyncio.create_task(passing.forward(INSTANCE, "10.0.1.1"))
        await asyncio.sleep(0)
        assert not other.done()
        imds.gate.set()
        assert (await other).status == 200
        await asyncio.gather(*greedy)


async def test_a_hang_up_frees_its_place() -> None:
    """When a client hangs up, its request ends and frees its place, whether it waits or is under way."""
    async with passing_on() as (passing, imds, _clock):
        for _ in range(3):
            imds.gate = asyncio.Event()
            asking = [asyncio.create_task(passing.forward(INSTANCE, "10.0.0.1")) for _ in range(proxy._QUEUE_OF_A_POD)]
            await asyncio.sleep(0)
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
            imds.gate.set()
        assert (await passing.forward(INSTANCE, "10.0.0.1")).status == 200


async def test_imds_is_not_asked_faster_than_its_rate() -> None:
    """NMI passes on 20 requests a second at most, because the node's own programs ask IMDS too."""
    async with passing_on() as (passing, imds, clock):
        start = clock.steady()
        for number in range(41):
            assert (await passing.forward(INSTANCE, f"10.0.0.{number}")).status == 200
        assert clock.steady() - start >= 39.9 / proxy._PER_SECOND
        assert len(imds.requests) == 41


async def test_an_endless_answer_is_not_read_to_its_end() -> None:
    """NMI stops reading an answer after a megabyte, since no document of IMDS is that long."""

    async def act() -> None:
        async with serving() as nmi:

            async def ask(nmi: Serving) -> int:
                return (await nmi.ask(DOCUMENT)).status

            assert await ask(nmi) == 200
            nmi.imds.fault = huge
            assert await ask(nmi) == 503

    await act()


def huge(_: ImdsRequest) -> Reply:
    """Answer with two megabytes."""
    return Reply(200, bytes(2 << 20))
