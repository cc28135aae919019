"""The token cache and what keeps us within IMDS's limits, on a clock that jumps."""

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from daemons.nmi.harness import JumpingClock
from podidentity.core.identities import SecretReference
from podidentity.core.imds import Token
from podidentity.core.sources import ManagedIdentity, ServicePrincipal, Source
from podidentity.errors import AzureError, PodIdentityError
from podidentity.nmi import cache
from podidentity.nmi.cache import Cached, refresh_after
from podidentity.nmi.ports import Grant
from podidentity.nmi.sources import Limited, Retrying

READER, WRITER = ManagedIdentity("reader"), ManagedIdentity("writer")
RESOURCE = "https://vault.azure.net"
HOUR, DAY = 3600, 86400


@dataclass
class Counting:
    """A source that counts. `script` holds what comes first; `held` keeps every call in the air."""

    clock: JumpingClock
    life_seconds: int = DAY
    calls: list[tuple[Source, str]] = field(default_factory=list)
    script: "deque[Grant | PodIdentityError]" = field(default_factory=deque)
    held: asyncio.Event | None = None
    ends: dict[str, float] = field(default_factory=dict)

    async def acquire(self, source: Source, resource: str) -> Grant:
        """Give a new token, or what the script says."""
        self.calls.append((source, resource))
        number = len(self.calls)
        if self.held is not None:
            await self.held.wait()
        scripted = self.script.popleft() if self.script else self.token(number)
        if isinstance(scripted, PodIdentityError):
            raise scripted
        return scripted

    def token(self, number: int, *, resource: str = RESOURCE) -> Token:
        """Make a token that lives from now on, and note its end by the clock that does not jump."""
        now = int(self.clock.wall())
        self.ends[f"no {number}"] = self.clock.steady() + self.life_seconds
        return Token(f"no {number}", now + self.life_seconds, now, resource)


@dataclass
class Caching:
    """A cache at work."""

    clock: JumpingClock
    source: Counting
    cached: Cached

    async def text(self, source: Source = READER, resource: str = RESOURCE) -> str:
        """Ask for a token and let everything settle."""
        grant = await self.cached.acquire(source, resource)
        await settle()
        return grant.access_token if isinstance(grant, Token) else grant[0].access_token


async def settle() -> None:
    """Let tasks that can go on go on."""
    for _ in range(20):
        await asyncio.sleep(0)


def run(test: Callable[[Caching], Awaitable[None]], *, spread: float = 0.0, life_seconds: int = DAY) -> None:
    """Run one test with a fresh cache."""

    async def act() -> None:
        clock = JumpingClock()
        source = Counting(clock, life_seconds)
        async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
            await test(Caching(clock, source, Cached(source, clock, tasks.create_task, spread=lambda: spread)))

    asyncio.run(act())


@pytest.mark.parametrize(("spread", "share"), [(0.0, 0.5), (1.0, 0.4)])
def test_a_long_token_is_refreshed_at_half_its_life(spread: float, share: float) -> None:
    """Over two hours: SDKs refresh it then; up to a tenth earlier, so that nodes do not ask in step."""

    async def test(at: Caching) -> None:
        assert await at.text() == "no 1"
        at.clock.pass_time(DAY * share - 10)
        assert await at.text() == "no 1"
        assert len(at.source.calls) == 1
        at.clock.pass_time(10)
        assert await at.text() == "no 1"
        assert await at.text() == "no 2"
        assert len(at.source.calls) == 2

    run(test, spread=spread)


@pytest.mark.parametrize(("spread", "left"), [(0.0, 900), (1.0, 1200)])
def test_a_short_token_is_refreshed_with_a_quarter_of_an_hour_left(spread: float, left: int) -> None:
    """SDKs ask again in the last five minutes: they must find a fresh one by then."""

    async def test(at: Caching) -> None:
        assert await at.text() == "no 1"
        at.clock.pass_time(HOUR - 5 - left - 1)
        assert await at.text() == "no 1"
        assert len(at.source.calls) == 1
        at.clock.pass_time(2)
        await at.text()
        assert len(at.source.calls) == 2

    run(test, spread=spread, life_seconds=HOUR)


@given(st.floats(1, 10 * DAY), st.floats(0, 1))
def test_a_refresh_is_never_late_nor_at_once(remaining: float, spread: float) -> None:
    """Some of the life is over, and at least fifteen minutes or half of it are left."""
    after = refresh_after(remaining, spread)
    assert 0.4 * remaining <= after + 1e-6 or after >= remaining - 1200 - 1e-6
    assert remaining - after >= min(900, remaining / 2) - 1e-6
    assert after > 0


def test_the_same_token_back_halves_the_wait() -> None:
    """IMDS keeps tokens too: ask again after half the remainder, and never more often than once a minute."""

    async def test(at: Caching) -> None:
        first = at.source.token(1)
        await at.text()
        at.source.script.extend([replace(first, not_before=first.not_before + 1)] * 40)
        asked_with_left = []
        while (left := first.expires_on - 5 - at.clock.wall()) > 0:
            before = len(at.source.calls)
            await at.text()
            if len(at.source.calls) > before:
                asked_with_left.append(round(left))
            at.clock.pass_time(1)
        assert asked_with_left == pytest.approx([900, 450, 225, 112, 52], abs=3)

    run(test, life_seconds=HOUR)


def test_the_machines_own_identity_is_asked_for_again_soon() -> None:
    """Who names no identity gets whatever the machine has now: a token of what it had is not kept for a day."""

    async def test(caching: Caching) -> None:
        own = ManagedIdentity()
        assert [await caching.text(own), await caching.text(own)] == ["no 1", "no 1"]
        caching.clock.pass_time(6)
        assert [await caching.text(own), await caching.text(READER)] == ["no 2", "no 3"]
        caching.clock.pass_time(6)
        assert await caching.text(READER) == "no 3"

    run(test)


def test_a_valid_token_is_served_while_the_source_fails() -> None:
    """Until its very end; the source is asked again every few seconds, not on every request."""

    async def test(at: Caching) -> None:
        await at.text()
        at.clock.pass_time(HOUR - 905)
        at.source.script.extend([AzureError("no answer")] * 1000)
        for _ in range(100):
            assert await at.text() == "no 1"
        assert len(at.source.calls) == 2
        at.clock.pass_time(899)
        assert await at.text() == "no 1"
        at.clock.pass_time(1)
        with pytest.raises(AzureError, match="no answer"):
            await at.text()

    run(test, life_seconds=HOUR)


@pytest.mark.parametrize(("retry_after", "kept"), [(None, 3), (0.5, 3), (40.0, 40), (1e9, 600)])
def test_a_failure_is_kept_briefly(retry_after: float | None, kept: int) -> None:
    """Three seconds, or as long as Retry-After says; then the source is asked again."""

    async def test(at: Caching) -> None:
        at.source.script.append(AzureError("throttled", status=429, retry_after_seconds=retry_after))
        for _ in range(10):
            with pytest.raises(AzureError, match="throttled"):
                await at.text()
        at.clock.pass_time(kept - 0.1)
        with pytest.raises(AzureError, match="throttled"):
            await at.text()
        assert len(at.source.calls) == 1
        at.clock.pass_time(0.2)
        assert await at.text() == "no 2"

    run(test)


def test_a_failure_is_nobody_elses() -> None:
    """Another resource of the same identity, and another identity, are asked for as ever."""

    async def test(at: Caching) -> None:
        at.source.script.append(AzureError("refused", status=400))
        with pytest.raises(AzureError, match="refused"):
            await at.text()
        assert await at.text(resource="other") == "no 2"
        assert await at.text(WRITER) == "no 3"

    run(test)


def test_what_makes_a_token_another_one_is_in_the_key() -> None:
    """Kind of source, identity, tenant, secret and resource: each alone makes another token."""
    secret = SecretReference("default", "s")
    base = ServicePrincipal("t", "c", "https://login.microsoftonline.com", secret, certificate=False)
    sources: list[Source] = [
        READER,
        ManagedIdentity(client_id="reader"),
        ManagedIdentity(object_id="reader"),
        ManagedIdentity(),
        base,
        base._replace(tenant_id="u"),
        base._replace(client_id="d"),
        base._replace(endpoint="https://login.microsoftonline.us"),
        base._replace(secret=SecretReference("other", "s")),
        base._replace(certificate=True),
        base._replace(auxiliary_tenant_ids=("u",)),
    ]

    async def test(at: Caching) -> None:
        texts = {await at.text(source, resource) for source in sources for resource in ("a", "b")}
        assert len(texts) == len(at.source.calls) == 2 * len(sources)

    run(test)


def test_memory_is_bounded_and_what_is_used_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flood of resources pushes out what nobody asks for, not what somebody does; failures are bounded too."""
    monkeypatch.setattr(cache, "ENTRY_LIMIT", 10)

    async def test(at: Caching) -> None:
        assert await at.text() == "no 1"
        for number in range(100):
            await at.text(resource=f"r{number}")
            assert await at.text() == "no 1"
        assert len(at.cached) == 10
        at.source.script.extend([AzureError("refused", status=400)] * 100)
        for number in range(100):
            with pytest.raises(AzureError):
                await at.text(resource=f"x{number}")
        assert len(at.cached._failed) == 10

    run(test)


def test_what_was_forgotten_in_the_air_is_not_kept() -> None:
    """A binding goes while the call is under way: whoever waits is answered, the token is not remembered."""

    async def test(at: Caching) -> None:
        at.source.held = asyncio.Event()
        asking = asyncio.create_task(at.text())
        await settle()
        at.cached.forget(READER)
        at.source.held.set()
        assert await asking == "no 1"
        assert len(at.cached) == 0
        assert await at.text() == "no 2"

    run(test)


def test_a_client_that_hangs_up_does_not_end_the_call_for_others() -> None:
    """Single flight is nobody's own."""

    async def test(at: Caching) -> None:
        at.source.held = asyncio.Event()
        first, second = asyncio.create_task(at.text()), asyncio.create_task(at.text())
        await settle()
        first.cancel()
        await settle()
        at.source.held.set()
        assert await second == "no 1"
        assert len(at.source.calls) == 1

    run(test)


def test_a_bug_in_a_source_ends_nothing_but_its_own_call() -> None:
    """Whoever waits is told, and is answered 500; the daemon's task group goes on, and so does the next call."""

    class Broken:
        broken = True

        async def acquire(self, source: Source, resource: str) -> Grant:
            await asyncio.sleep(0)
            if self.broken:
                raise ValueError("a bug")
            return Token(str(source), 2_000_000_000, 0, resource)

    async def act() -> None:
        source, clock = Broken(), JumpingClock()
        async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
            cached = Cached(source, clock, tasks.create_task)
            both = await asyncio.gather(*(cached.kept(READER, RESOURCE) for _ in range(2)), return_exceptions=True)
            assert [type(one) for one in both] == [ValueError, ValueError]
            source.broken = False
            assert (await cached.kept(READER, RESOURCE)).texts == (str(READER),)

    asyncio.run(act())


def test_calls_in_the_air_are_bounded() -> None:
    """They go on without their clients: a pod that asks for ever new resources and hangs up must not pile them up."""

    async def test(at: Caching) -> None:
        at.source.held = asyncio.Event()
        asking = [asyncio.create_task(at.text(resource=f"r{number}")) for number in range(cache.FLIGHTS_OF_ONE + 10)]
        await settle()
        for one in asking:
            one.cancel()
        await settle()
        with pytest.raises(AzureError, match="too many"):
            await at.text(resource="one more")
        other = asyncio.create_task(at.text(WRITER))
        await settle()
        at.source.held.set()
        assert (await other).startswith("no ")
        assert len(at.source.calls) == cache.FLIGHTS_OF_ONE + 1
        assert await at.text(resource="one more")

    run(test)


def test_no_pods_together_take_the_room_of_all() -> None:
    """Forty pods with as many identities ask for ever new resources: the next pod's first token is fetched at once."""

    async def test(at: Caching) -> None:
        at.source.held = asyncio.Event()
        asking = [
            asyncio.create_task(at.cached.kept(ManagedIdentity(f"greedy-{pod}"), f"r{number}", f"uid-{pod}"))
            for number in range(cache.FLIGHTS_OF_ONE)
            for pod in range(40)
        ]
        await settle()
        in_the_air = len(at.source.calls)
        assert cache.FLIGHT_LIMIT / 2 < in_the_air < cache.FLIGHT_LIMIT
        other = asyncio.create_task(at.cached.kept(WRITER, RESOURCE, "uid-of-a-quiet-one"))
        await settle()
        assert at.source.calls[-1] == (WRITER, RESOURCE)
        at.source.held.set()
        assert (await other).texts
        told = await asyncio.gather(*asking, return_exceptions=True)
        assert sum(isinstance(one, AzureError) for one in told) == len(asking) - in_the_air

    run(test)


def test_a_pod_with_many_identities_has_one_share() -> None:
    """An excepted pod may name any identity: that does not multiply its room."""

    async def test(at: Caching) -> None:
        at.source.held = asyncio.Event()
        asking = [
            asyncio.create_task(at.cached.kept(ManagedIdentity(client_id=f"c{number}"), RESOURCE, "uid"))
            for number in range(cache.FLIGHTS_OF_ONE + 10)
        ]
        await settle()
        assert len(at.source.calls) == cache.FLIGHTS_OF_ONE
        at.source.held.set()
        told = await asyncio.gather(*asking, return_exceptions=True)
        assert sum(isinstance(one, AzureError) for one in told) == 10
        await at.cached.kept(READER, RESOURCE, "uid")

    run(test)


def test_a_failure_that_is_told_often_does_not_grow() -> None:
    """The same error is raised for each who asks; what hung on it from the last time must not stay."""

    async def test(at: Caching) -> None:
        at.source.script.append(AzureError("refused", status=400))
        lengths = []
        for _ in range(20):
            with pytest.raises(AzureError) as caught:
                await at.text()
            lengths.append(len(caught.traceback))
        assert len(set(lengths[1:])) == 1

    run(test)


@dataclass
class Slow:
    """A source whose calls take as long as a test says, and which says who was served."""

    served: list[Source] = field(default_factory=list)
    gates: "deque[asyncio.Event]" = field(default_factory=deque)

    async def acquire(self, source: Source, resource: str) -> Grant:
        """Wait for the next gate to open."""
        gate = asyncio.Event()
        self.gates.append(gate)
        await gate.wait()
        self.served.append(source)
        return Token("t", 0, 0, resource)


def test_a_pod_that_asks_for_everything_does_not_hold_up_others() -> None:
    """Turns go round by identity: the hundredth resource of one waits, the first of another does not."""

    async def act() -> None:
        slow, clock = Slow(), JumpingClock()
        limited = Limited(slow, clock, per_second=20, at_once=5)
        async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
            for number in range(100):
                tasks.create_task(limited.acquire(READER, f"r{number}"))
            await settle()
            tasks.create_task(limited.acquire(WRITER, "r"))
            cancelled = tasks.create_task(limited.acquire(WRITER, "hung up"))
            await settle()
            cancelled.cancel()
            while len(slow.served) < 101:
                assert len(slow.gates) <= 5
                slow.gates.popleft().set()
                await settle()
        assert slow.served.index(WRITER) <= 6
        assert Counter(slow.served) == {READER: 100, WRITER: 1}

    asyncio.run(act())


def test_after_a_429_nobody_asks_before_its_time() -> None:
    """IMDS counts the calls of the whole machine, whoever they were for."""

    async def act() -> None:
        clock = JumpingClock()
        source = Counting(clock)
        source.script.append(AzureError("slow down", status=429, retry_after_seconds=9))
        limited = Limited(source, clock, per_second=20, at_once=5)
        began = clock.steady()
        with pytest.raises(AzureError):
            await limited.acquire(READER, "r")
        await limited.acquire(WRITER, "r")
        assert clock.steady() - began >= 9

    asyncio.run(act())


@pytest.mark.parametrize(
    ("error", "calls", "seconds"),
    [
        (AzureError("gone", status=410), range(5, 40), (70, 85)),
        (AzureError("gone", status=410, retry_after_seconds=5), range(10, 20), (70, 80)),
        (AzureError("throttled", status=429), range(6, 7), (31, 31)),
        (AzureError("throttled", status=429, retry_after_seconds=2), range(6, 7), (10, 10)),
        (AzureError("throttled", status=429, retry_after_seconds=31), range(1, 2), (0, 0)),
        (AzureError("broken", status=500), range(4, 5), (2, 3)),
        (AzureError("silent"), range(4, 5), (2, 3)),
        (AzureError("not found", status=400), range(1, 2), (0, 0)),
        (AzureError("forbidden", status=403), range(1, 2), (0, 0)),
    ],
)
def test_what_is_tried_again_and_how_long(error: AzureError, calls: range, seconds: tuple[int, int]) -> None:
    """410 for as long as IMDS may be updated; 429 and 5xx a few times, at the pace they ask for; refusals never."""

    async def act() -> None:
        clock = JumpingClock()
        source = Counting(clock)
        source.script.extend([error] * 1000)
        began = clock.steady()
        with pytest.raises(AzureError):
            await Retrying(source, clock).acquire(READER, "r")
        assert len(source.calls) in calls
        assert seconds[0] <= clock.steady() - began <= seconds[1]

    asyncio.run(act())


STEPS = [("ask", 0), ("pass", 700), ("pass", 3000), ("jump", -5000), ("jump", 5000), ("fail", 0)]


@given(st.lists(st.sampled_from(STEPS), max_size=40))
@example([("ask", 0), ("jump", -5000), ("pass", 3000), ("pass", 3000), ("ask", 0)])
@example([("ask", 0), ("pass", 700), ("fail", 0), ("pass", 3000), ("ask", 0), ("ask", 0)])
def test_an_expired_token_is_never_given(steps: list[tuple[str, int]]) -> None:
    """Whatever fails, returns or jumps: what is given is still good by the clock that does not jump."""

    async def test(at: Caching) -> None:
        for step, seconds in steps:
            match step:
                case "pass":
                    at.clock.pass_time(seconds)
                case "jump":
                    at.clock.set_wall(seconds)
                case "fail":
                    at.source.script.append(AzureError("no answer"))
                case _:
                    with contextlib.suppress(AzureError):
                        assert at.source.ends[await at.text()] > at.clock.steady()

    run(test, life_seconds=HOUR)
