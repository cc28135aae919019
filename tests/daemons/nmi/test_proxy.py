"""What is passed on to IMDS: a few requests at a time, the pods in turn, and no endless answer."""

import asyncio
from collections.abc import Awaitable, Callable

from daemons.nmi.harness import JumpingClock, Serving, serving
from daemons.nmi.imds import Asked, Reply, StandInImds
from podidentity.core.imds import Forward
from podidentity.nmi import proxy
from podidentity.nmi.proxy import Proxy
from podidentity.nmi.sources import open_imds_client

INSTANCE = Forward("/metadata/instance?api-version=2021-02-01")
DOCUMENT = "/metadata/instance?api-version=2021-02-01"


def run(test: Callable[[Proxy, StandInImds, JumpingClock], Awaitable[None]]) -> None:
    """Run one test against a fresh proxy."""

    async def act() -> None:
        clock = JumpingClock()
        async with asyncio.timeout(100), StandInImds().listening() as imds, open_imds_client("test") as http:
            await test(Proxy(http, f"http://127.0.0.1:{imds.port}", clock), imds, clock)

    asyncio.run(act())


async def until(holds: Callable[[], object]) -> None:
    """Let the loop turn until `holds`."""
    while not holds():  # noqa: ASYNC110  # the condition is a count, nobody sets an event for it
        await asyncio.sleep(0)


def test_one_pod_cannot_hold_all_places() -> None:
    """A hundred requests of one pod: all but its share are refused, and a neighbour's is among the next to be asked."""

    async def test(passing: Proxy, imds: StandInImds, _: JumpingClock) -> None:
        imds.held = asyncio.Event()
        greedy = [asyncio.create_task(passing.forward(INSTANCE, "10.0.0.1")) for _ in range(100)]
        await until(lambda: sum(one.done() for one in greedy) == 100 - proxy._QUEUE_OF_A_POD)
        other = asyncio.create_task(passing.forward(INSTANCE, "10.0.0.2"))
        await asyncio.sleep(0)
        assert not other.done()
        imds.held.set()
        assert (await other).status == 200
        assert sorted({(await one).status for one in greedy}) == [200, 503]
        assert (await passing.forward(INSTANCE, "10.0.0.1")).status == 200

    run(test)


def test_many_pods_leave_room_for_the_next() -> None:
    """Twenty pods ask for all they can get: who comes then is not refused."""

    async def test(passing: Proxy, imds: StandInImds, _: JumpingClock) -> None:
        imds.held = asyncio.Event()
        greedy = [
            asyncio.create_task(passing.forward(INSTANCE, f"10.0.0.{pod}"))
            for _ in range(proxy._QUEUE_OF_A_POD)
            for pod in range(20)
        ]
        await until(lambda: imds.at_once == proxy._AT_ONCE)
        other = asyncio.create_task(passing.forward(INSTANCE, "10.0.1.1"))
        await asyncio.sleep(0)
        assert not other.done()
        imds.held.set()
        assert (await other).status == 200
        await asyncio.gather(*greedy)

    run(test)


def test_a_hang_up_frees_its_place() -> None:
    """What waits for its turn, and what is under way, end with their client."""

    async def test(passing: Proxy, imds: StandInImds, _clock: JumpingClock) -> None:
        for _ in range(3):
            imds.held = asyncio.Event()
            asking = [asyncio.create_task(passing.forward(INSTANCE, "10.0.0.1")) for _ in range(proxy._QUEUE_OF_A_POD)]
            await asyncio.sleep(0)
            for one in asking:
                one.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
            imds.held.set()
        assert (await passing.forward(INSTANCE, "10.0.0.1")).status == 200

    run(test)


def test_imds_is_not_asked_faster_than_its_rate() -> None:
    """The node's own programs ask it too."""

    async def test(passing: Proxy, imds: StandInImds, clock: JumpingClock) -> None:
        began = clock.steady()
        for number in range(41):
            assert (await passing.forward(INSTANCE, f"10.0.0.{number}")).status == 200
        assert clock.steady() - began >= 39.9 / proxy._PER_SECOND
        assert len(imds.asked) == 41

    run(test)


def test_an_endless_answer_is_not_read_to_its_end() -> None:
    """More than a megabyte is no document of IMDS."""

    async def act() -> None:
        async with serving() as nmi:

            async def ask(nmi: Serving) -> int:
                return (await nmi.ask(DOCUMENT)).status

            assert await ask(nmi) == 200
            nmi.imds.fault = huge
            assert await ask(nmi) == 503

    asyncio.run(act())


def huge(_: Asked) -> Reply:
    """Answer with two megabytes."""
    return Reply(200, bytes(2 << 20))
