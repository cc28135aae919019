"""The token cache, and the limits that keep NMI's calls within IMDS's own, on a clock that jumps."""

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from clocks import JumpingClock
from podidentity.core.model.identities import SecretReference
from podidentity.core.tokens.imds import Token
from podidentity.core.tokens.sources import BrokerIdentity, ManagedIdentity, ProvenIdentity, ServicePrincipal, Source
from podidentity.errors import AzureError, PodIdentityError
from podidentity.issuance import cache
from podidentity.issuance.cache import CachedToken, TokenCache, refresh_after
from podidentity.issuance.fairness import Pace
from podidentity.issuance.limits import LimitedTokens, RetryingTokens
from podidentity.issuance.ports import Grant
from waiting import settle

READER, WRITER = ManagedIdentity("reader"), ManagedIdentity("writer")
RESOURCE = "https://vault.azure.net"
HOUR, DAY = 3600, 86400
CALLS_OF_A_POD = 64  # as THREAT_MODEL.md says


@dataclass
class Counting:
    """A source that counts its calls. `script` holds answers that come first; `gate` holds calls until it is set."""

    clock: JumpingClock
    life_seconds: int = DAY
    calls: list[tuple[Source, str]] = field(default_factory=list)
    script: "deque[Grant | PodIdentityError]" = field(default_factory=deque)
    gate: asyncio.Event | None = None
    ends: dict[str, float] = field(default_factory=dict)

    async def acquire(self, source: Source, resource: str) -> Grant:
        """Return a new token, or what the script has next."""
        self.calls.append((source, resource))
        number = len(self.calls)
        if self.gate is not None:
            await self.gate.wait()
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
    cached: TokenCache

    async def text(self, source: Source = READER, resource: str = RESOURCE) -> str:
        """Ask for a token and let everything settle."""
        grant = await self.cached.acquire(source, resource)
        await settle()
        return grant.access_token if isinstance(grant, Token) else grant[0].access_token


@asynccontextmanager
async def fresh_cache(*, spread: float = 0.0, life_seconds: int = DAY, firsts: int = 1000) -> AsyncIterator[Caching]:
    """Yield a fresh cache, where a pod may begin `firsts` calls a second."""
    clock = JumpingClock()
    source = Counting(clock, life_seconds)
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        cached = TokenCache(source, clock, tasks.create_task, spread=lambda: spread, firsts_per_asker=firsts)
        yield Caching(clock, source, cached)


@pytest.mark.parametrize(("spread", "share"), [(0.0, 0.5), (1.0, 0.4)])
async def test_a_long_token_is_refreshed_at_half_its_life(spread: float, share: float) -> None:
    """SDKs refresh a token of more than two hours at half its life. The cache is up to a tenth earlier, at random."""
    async with fresh_cache(spread=spread) as caching:
        assert await caching.text() == "no 1"
        caching.clock.jump(DAY * share - 10)
        assert await caching.text() == "no 1"
        assert len(caching.source.calls) == 1
        caching.clock.jump(10)
        assert await caching.text() == "no 1"
        assert await caching.text() == "no 2"
        assert len(caching.source.calls) == 2


@pytest.mark.parametrize(("spread", "remaining"), [(0.0, 900), (1.0, 1200)])
async def test_a_short_token_is_refreshed_with_a_quarter_of_an_hour_left(spread: float, remaining: int) -> None:
    """SDKs ask again in a token's last five minutes, and must find a fresh one by then."""
    async with fresh_cache(spread=spread, life_seconds=HOUR) as caching:
        assert await caching.text() == "no 1"
        caching.clock.jump(HOUR - 5 - remaining - 1)
        assert await caching.text() == "no 1"
        assert len(caching.source.calls) == 1
        caching.clock.jump(2)
        await caching.text()
        assert len(caching.source.calls) == 2


@given(st.floats(1, 10 * DAY), st.floats(0, 1))
def test_a_refresh_is_never_late_nor_at_once(remaining: float, spread: float) -> None:
    """When a token is refreshed, at least 15 minutes or half of its life are left, and some of its life has passed."""
    delay = refresh_after(remaining, spread)
    assert 0.4 * remaining <= delay + 1e-6 or delay >= remaining - 1200 - 1e-6
    assert remaining - delay >= min(900, remaining / 2) - 1e-6
    assert delay > 0


async def test_the_same_token_back_halves_the_wait() -> None:
    """IMDS keeps tokens too: ask again after half the remainder, and never more often than once a minute."""
    async with fresh_cache(life_seconds=HOUR) as caching:
        first = caching.source.token(1)
        await caching.text()
        caching.source.script.extend([replace(first, not_before=first.not_before + 1)] * 40)
        asked_with_left = []
        while (remaining := first.expires_on - 5 - caching.clock.wall()) > 0:
            calls_so_far = len(caching.source.calls)
            await caching.text()
            if len(caching.source.calls) > calls_so_far:
                asked_with_left.append(round(remaining))
            caching.clock.jump(1)
        assert asked_with_left == pytest.approx([900, 450, 225, 112, 52], abs=3)


async def test_another_token_is_kept_as_long_as_the_first() -> None:
    """Only the same token again is asked for after half its time; a new one lasts until 15 minutes before its end."""
    async with fresh_cache(life_seconds=HOUR) as caching:
        await caching.text()
        caching.clock.jump(HOUR - 5 - 899)
        assert [await caching.text(), await caching.text()] == ["no 1", "no 2"]
        caching.clock.jump(HOUR - 5 - 901)
        assert [await caching.text(), await caching.text()] == ["no 2", "no 2"]
        caching.clock.jump(2)
        assert [await caching.text(), await caching.text()] == ["no 2", "no 3"]


async def test_the_same_token_is_asked_for_once_a_minute() -> None:
    """With less than two minutes left, half the remainder would be too soon: a minute passes between two calls."""
    async with fresh_cache(life_seconds=200) as caching:
        caching.source.script.append(caching.source.token(1))
        await caching.text()
        caching.source.script.append(caching.source.token(1))
        caching.clock.jump(98)
        await caching.text()
        caching.clock.jump(59.5)
        await caching.text()
        assert len(caching.source.calls) == 2
        caching.clock.jump(1)
        await caching.text()
        assert len(caching.source.calls) == 3


async def test_the_machines_own_identity_is_asked_for_again_soon() -> None:
    """A request without an identity means the machine's present one, so its token is kept for five seconds only."""
    async with fresh_cache() as caching:
        machine = ManagedIdentity()
        assert [await caching.text(machine), await caching.text(machine)] == ["no 1", "no 1"]
        caching.clock.jump(6)
        assert [await caching.text(machine), await caching.text(READER)] == ["no 2", "no 3"]
        caching.clock.jump(6)
        assert await caching.text(READER) == "no 3"


async def test_a_valid_token_is_served_while_the_source_fails() -> None:
    """A cached token is served until it expires, while the failing source is asked every few seconds only."""
    async with fresh_cache(life_seconds=HOUR) as caching:
        await caching.text()
        caching.clock.jump(HOUR - 905)
        caching.source.script.extend([AzureError("no answer")] * 1000)
        for _ in range(100):
            assert await caching.text() == "no 1"
        assert len(caching.source.calls) == 2
        caching.clock.jump(899)
        assert await caching.text() == "no 1"
        caching.clock.jump(1)
        with pytest.raises(AzureError, match="no answer"):
            await caching.text()


@pytest.mark.parametrize(("retry_after", "seconds"), [(None, 3), (0.5, 3), (1.0, 1), (40.0, 40), (1e9, 600)])
async def test_a_failure_is_kept_briefly(retry_after: float | None, seconds: int) -> None:
    """A failure is repeated for three seconds, or for as long as Retry-After says, before the source is asked again."""
    async with fresh_cache() as caching:
        caching.source.script.append(AzureError("throttled", status=429, retry_after_seconds=retry_after))
        for _ in range(10):
            with pytest.raises(AzureError, match="throttled"):
                await caching.text()
        caching.clock.jump(seconds - 0.1)
        with pytest.raises(AzureError, match="throttled"):
            await caching.text()
        assert len(caching.source.calls) == 1
        caching.clock.jump(0.2)
        assert await caching.text() == "no 2"


async def test_a_failure_is_nobody_elses() -> None:
    """A failure counts for one identity and one resource: requests for any other are sent to the source as usual."""
    async with fresh_cache() as caching:
        caching.source.script.append(AzureError("refused", status=400))
        with pytest.raises(AzureError, match="refused"):
            await caching.text()
        assert await caching.text(resource="other") == "no 2"
        assert await caching.text(WRITER) == "no 3"


async def test_what_makes_a_token_another_one_is_in_the_key() -> None:
    """Each of kind of source, identity, tenant, secret and resource alone makes another cache entry."""
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

    async with fresh_cache() as caching:
        texts = {await caching.text(source, resource) for source in sources for resource in ("a", "b")}
        assert len(texts) == len(caching.source.calls) == 2 * len(sources)


async def test_memory_is_bounded_and_what_is_used_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flood of resources pushes out unused tokens and not one in use; remembered failures are bounded, too."""
    monkeypatch.setattr(cache, "ENTRY_LIMIT", 10)

    async with fresh_cache() as caching:
        assert await caching.text() == "no 1"
        for number in range(100):
            await caching.text(resource=f"r{number}")
            assert await caching.text() == "no 1"
        assert len(caching.cached) == 10
        caching.source.script.extend([AzureError("refused", status=400)] * 100)
        for number in range(100):
            with pytest.raises(AzureError):
                await caching.text(resource=f"x{number}")
        assert len(caching.cached._failures) == 10


async def test_what_was_forgotten_in_the_air_is_not_kept() -> None:
    """If a token is dropped while its call is under way, the waiting request is answered but the token is not kept."""
    async with fresh_cache() as caching:
        caching.source.gate = asyncio.Event()
        asking = asyncio.create_task(caching.text())
        await settle()
        caching.cached.forget(READER)
        caching.source.gate.set()
        assert await asking == "no 1"
        assert len(caching.cached) == 0
        assert await caching.text() == "no 2"


async def test_what_is_forgotten_is_asked_for_anew_and_nothing_else_is() -> None:
    """`forget` drops all tokens and failures of one source, whatever the resource, and those of no other source."""
    async with fresh_cache() as caching:
        assert [await caching.text(source, name) for source in (READER, WRITER) for name in "ab"] == [
            "no 1",
            "no 2",
            "no 3",
            "no 4",
        ]
        caching.source.script.extend([AzureError("refused", status=403)] * 2)
        for source in (READER, WRITER):
            with pytest.raises(AzureError):
                await caching.text(source, "c")
        caching.cached.forget(READER)
        assert [await caching.text(WRITER, name) for name in "ab"] == ["no 3", "no 4"]
        assert [await caching.text(READER, name) for name in "abc"] == ["no 7", "no 8", "no 9"]
        with pytest.raises(AzureError):
            await caching.text(WRITER, "c")


async def test_with_a_secret_everything_that_was_made_with_it_goes() -> None:
    """`forget_secret` drops every token made with one Secret; those of other Secrets and of IMDS stay."""
    leaked, good = SecretReference("default", "leaked"), SecretReference("default", "good")
    base = ServicePrincipal("t", "c", "https://login.microsoftonline.com", leaked, certificate=False)
    sources = (base, base._replace(client_id="d"), base._replace(secret=good), READER)
    async with fresh_cache() as caching:
        first = [await caching.text(source) for source in sources]
        caching.cached.forget_secret(leaked)
        again = [await caching.text(source) for source in sources]
        assert [before == after for before, after in zip(first, again, strict=True)] == [False, False, True, True]


async def test_in_its_last_five_seconds_a_token_is_no_use() -> None:
    """In its last five seconds, by the wall clock or the steady one, a token could expire on its way to the client."""
    for pass_time in (JumpingClock.jump, JumpingClock.set_wall):
        async with fresh_cache(life_seconds=100) as caching:
            assert await caching.text() == "no 1"
            caching.source.gate = asyncio.Event()
            pass_time(caching.clock, 94)
            assert await caching.text() == "no 1"
            pass_time(caching.clock, 1)
            asking = asyncio.create_task(caching.text())
            await settle()
            assert not asking.done()
            caching.source.gate.set()
            assert await asking == "no 2"


async def test_a_brokers_token_is_kept_for_seconds() -> None:
    """A broker's token is kept for 20 s however long it is valid, so that a withdrawn grant ends within 30 s."""
    async with fresh_cache() as caching:
        source = BrokerIdentity("c", "default", "web", "uid")
        assert await caching.text(source) == "no 1"
        caching.clock.jump(19.5)
        first = caching.cached.get(source, RESOURCE, caching.clock.steady(), int(caching.clock.wall()))
        assert first is not None
        caching.clock.jump(0.5)
        assert caching.cached.get(source, RESOURCE, caching.clock.steady(), int(caching.clock.wall())) is not first


async def test_an_answers_time_counts_down() -> None:
    """The bytes of an answer are made once a second, with the seconds that the token has left."""
    clock = JumpingClock()
    token = CachedToken(Token("t", int(clock.wall()) + 60, 0, RESOURCE), clock)
    second = int(clock.wall())
    assert token.response(second) is token.response(second)
    assert b'"expires_in": "60"' in token.response(second)
    assert b'"expires_in": "59"' in token.response(second + 1)


async def test_who_is_refused_a_place_is_told_when_to_come_again() -> None:
    """A request that finds no room for its call is refused with a Retry-After of one second."""
    async with fresh_cache(firsts=1) as caching:
        caching.source.gate = asyncio.Event()
        tasks = [asyncio.create_task(caching.text(resource=str(number))) for number in range(100)]
        for _ in range(5):
            await settle()
        refusals = [task.exception() for task in tasks if task.done()]
        assert {getattr(refusal, "retry_after_seconds", None) for refusal in refusals} == {1.0}
        caching.source.gate.set()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_client_that_hangs_up_does_not_end_the_call_for_others() -> None:
    """Requests share a call to the source; when one client hangs up, the call goes on for the others."""
    async with fresh_cache() as caching:
        caching.source.gate = asyncio.Event()
        first, second = asyncio.create_task(caching.text()), asyncio.create_task(caching.text())
        await settle()
        first.cancel()
        await settle()
        caching.source.gate.set()
        assert await second == "no 1"
        assert len(caching.source.calls) == 1


async def test_a_bug_in_a_source_ends_nothing_but_its_own_call() -> None:
    """A bug in a call fails the requests that wait for it; the daemon's task group and later calls go on."""

    class Broken:
        broken = True

        async def acquire(self, source: Source, resource: str) -> Grant:
            await asyncio.sleep(0)
            if self.broken:
                raise ValueError("a bug")
            return Token(str(source), 2_000_000_000, 0, resource)

    source, clock = Broken(), JumpingClock()
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        cached = TokenCache(source, clock, tasks.create_task)
        calls = [cached.get_or_fetch(READER, RESOURCE) for _ in range(2)]
        errors = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(error) for error in errors] == [ValueError, ValueError]
        source.broken = False
        assert (await cached.get_or_fetch(READER, RESOURCE)).texts == (str(READER),)


async def test_calls_in_the_air_are_bounded() -> None:
    """Calls outlive the clients that began them, so a pod that asks and hangs up is refused after 64 of them."""
    async with fresh_cache() as caching:
        caching.source.gate = asyncio.Event()
        asking = [asyncio.create_task(caching.text(resource=f"r{number}")) for number in range(CALLS_OF_A_POD + 10)]
        await settle()
        for task in asking:
            task.cancel()
        await settle()
        with pytest.raises(AzureError, match="too many"):
            await caching.text(resource="one more")
        other = asyncio.create_task(caching.text(WRITER))
        await settle()
        caching.source.gate.set()
        assert (await other).startswith("no ")
        assert len(caching.source.calls) == CALLS_OF_A_POD + 1
        assert await caching.text(resource="one more")


async def test_no_pods_together_take_the_room_of_all() -> None:
    """Forty pods with as many identities ask for ever new resources: the next pod's first token is fetched at once."""
    async with fresh_cache() as caching:
        caching.source.gate = asyncio.Event()
        asking = [
            asyncio.create_task(
                caching.cached.get_or_fetch(ManagedIdentity(f"greedy-{pod}"), f"r{number}", f"uid-{pod}")
            )
            for number in range(CALLS_OF_A_POD)
            for pod in range(40)
        ]
        await settle()
        in_the_air = len(caching.source.calls)
        assert cache.FLIGHT_LIMIT / 2 < in_the_air < cache.FLIGHT_LIMIT
        other = asyncio.create_task(caching.cached.get_or_fetch(WRITER, RESOURCE, "uid-of-a-quiet-one"))
        await settle()
        assert caching.source.calls[-1] == (WRITER, RESOURCE)
        caching.source.gate.set()
        assert (await other).texts
        outcomes = await asyncio.gather(*asking, return_exceptions=True)
        assert sum(isinstance(outcome, AzureError) for outcome in outcomes) == len(asking) - in_the_air


async def test_a_pod_with_many_identities_has_one_share() -> None:
    """A pod that may name any identity has room for 64 calls in all, not for 64 of each identity."""
    async with fresh_cache() as caching:
        caching.source.gate = asyncio.Event()
        asking = [
            asyncio.create_task(caching.cached.get_or_fetch(ManagedIdentity(client_id=f"c{number}"), RESOURCE, "uid"))
            for number in range(CALLS_OF_A_POD + 10)
        ]
        await settle()
        assert len(caching.source.calls) == CALLS_OF_A_POD
        caching.source.gate.set()
        outcomes = await asyncio.gather(*asking, return_exceptions=True)
        assert sum(isinstance(outcome, AzureError) for outcome in outcomes) == 10
        await caching.cached.get_or_fetch(READER, RESOURCE, "uid")


async def test_a_pod_begins_two_calls_a_second_at_most() -> None:
    """IMDS answers 20 a second for the whole machine: a pod that asks for ever new resources waits, and no other."""
    async with fresh_cache(firsts=cache.FIRSTS_PER_ASKER) as caching:
        moments: list[float] = []
        for number in range(20):
            await caching.cached.get_or_fetch(READER, f"r{number}", "greedy")
            moments.append(caching.clock.steady())
        assert all(later - earlier >= 1.0 for earlier, later in zip(moments, moments[2:], strict=False))
        start = caching.clock.steady()
        await caching.cached.get_or_fetch(WRITER, RESOURCE, "quiet")
        assert caching.clock.steady() == start


def test_who_would_wait_too_long_is_refused_and_forgotten() -> None:
    """A call that could begin only after the longest wait is refused at once; the memory of who waits has a bound."""
    clock = JumpingClock()
    pace = Pace(clock, starts=2, longest_seconds=3)
    assert [pace.delay("greedy") for _ in range(10)] == [0, 0, 1, 1, 2, 2, 3, 3, None, None]
    assert pace.delay("quiet") == 0
    clock.jump(3)
    assert pace.delay("greedy") == 1
    clock.jump(60)
    for number in range(5000):
        pace.delay(number)
        clock.jump(0.01)
    assert len(pace._moments) < 1100


async def test_a_pod_that_waits_for_its_start_takes_what_another_fetched() -> None:
    """While one pod waits to begin a call, another may fetch the same token at once, and the first pod gets it too."""
    async with fresh_cache(firsts=cache.FIRSTS_PER_ASKER) as caching:
        greedy = [
            asyncio.create_task(caching.cached.get_or_fetch(READER, f"r{number}", "greedy")) for number in range(5)
        ]
        start = caching.clock.steady()
        await caching.cached.get_or_fetch(READER, "r4", "quiet")
        assert caching.clock.steady() - start <= 1.0
        await asyncio.gather(*greedy)
        assert caching.source.calls.count((READER, "r4")) == 1


async def test_a_failure_that_is_told_often_does_not_grow() -> None:
    """A remembered error is raised many times, and must not collect a traceback or context each time."""
    async with fresh_cache() as caching:
        caching.source.script.append(AzureError("refused", status=400))
        lengths = []
        for _ in range(20):
            with pytest.raises(AzureError) as caught:
                await caching.text()
            lengths.append(len(caught.traceback))
        assert len(set(lengths[1:])) == 1


@dataclass
class Slow:
    """A source whose calls take as long as a test says, and which notes the sources it served."""

    sources_served: list[Source] = field(default_factory=list)
    gates: "deque[asyncio.Event]" = field(default_factory=deque)

    async def acquire(self, source: Source, resource: str) -> Grant:
        """Wait for the next gate to open."""
        gate = asyncio.Event()
        self.gates.append(gate)
        await gate.wait()
        self.sources_served.append(source)
        return Token("t", 0, 0, resource)


async def test_a_pod_that_asks_for_everything_does_not_hold_up_others() -> None:
    """Identities take turns: one identity's hundredth resource waits, another identity's first does not."""
    slow, clock = Slow(), JumpingClock()
    limited = LimitedTokens(slow, clock, per_second=20, at_once=5)
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        for number in range(100):
            tasks.create_task(limited.acquire(READER, f"r{number}"))
        await settle()
        tasks.create_task(limited.acquire(WRITER, "r"))
        cancelled = tasks.create_task(limited.acquire(WRITER, "hung up"))
        await settle()
        cancelled.cancel()
        while len(slow.sources_served) < 101:
            assert len(slow.gates) <= 5
            slow.gates.popleft().set()
            await settle()
    assert slow.sources_served.index(WRITER) <= 6
    assert Counter(slow.sources_served) == {READER: 100, WRITER: 1}


def principal(number: int, namespace: str) -> Source:
    """Return a service principal whose Secret is in a namespace."""
    return ServicePrincipal("t", f"app-{number}", "https://login", SecretReference(namespace, "sp"), certificate=True)


def proven(number: int, namespace: str) -> Source:
    """Return the source of a pod that proves itself with its own token."""
    return ProvenIdentity(f"app-{number}", namespace, "a.b.c")


@pytest.mark.parametrize("make_source", [principal, proven])
async def test_of_one_namespace_only_some_are_under_way(make_source: Callable[[int, str], Source]) -> None:
    """A namespace's slow calls use a part of the places only, so other namespaces' calls begin at once."""
    slow, clock = Slow(), JumpingClock()
    limited = LimitedTokens(slow, clock, per_second=1000, at_once=8, per_asker=2)
    sources = [
        make_source(number, namespace) for namespace, many in (("greedy", 20), ("quiet", 1)) for number in range(many)
    ]
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        for source in sources:
            tasks.create_task(limited.acquire(source, "r"))
        await settle()
        assert len(slow.gates) == 3
        while slow.gates:
            slow.gates.popleft().set()
            await settle()
    assert slow.sources_served.index(sources[-1]) <= 2
    assert len(slow.sources_served) == 21


async def test_after_a_429_nobody_asks_before_its_time() -> None:
    """After a 429 with Retry-After no identity's call is sent early, since IMDS counts those of the whole machine."""
    clock = JumpingClock()
    source = Counting(clock)
    source.script.append(AzureError("slow down", status=429, retry_after_seconds=9))
    limited = LimitedTokens(source, clock, per_second=20, at_once=5)
    start = clock.steady()
    with pytest.raises(AzureError):
        await limited.acquire(READER, "r")
    await limited.acquire(WRITER, "r")
    assert clock.steady() - start >= 9


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
async def test_what_is_tried_again_and_how_long(error: AzureError, calls: range, seconds: tuple[int, int]) -> None:
    """410 is tried again for 70 s, 429 and 5xx a few times after their Retry-After, and a refusal never."""
    clock = JumpingClock()
    source = Counting(clock)
    source.script.extend([error] * 1000)
    start = clock.steady()
    with pytest.raises(AzureError):
        await RetryingTokens(source, clock).acquire(READER, "r")
    assert len(source.calls) in calls
    assert seconds[0] <= clock.steady() - start <= seconds[1]


STEPS = [("ask", 0), ("pass", 700), ("pass", 3000), ("jump", -5000), ("jump", 5000), ("fail", 0)]


@given(st.lists(st.sampled_from(STEPS), max_size=40))
@example([("ask", 0), ("jump", -5000), ("pass", 3000), ("pass", 3000), ("ask", 0)])
@example([("ask", 0), ("pass", 700), ("fail", 0), ("pass", 3000), ("ask", 0), ("ask", 0)])
async def test_an_expired_token_is_never_given(steps: list[tuple[str, int]]) -> None:
    """Whatever fails or jumps, a token that is given is still valid by the clock that does not jump."""
    async with fresh_cache(life_seconds=HOUR) as caching:
        for step, seconds in steps:
            match step:
                case "pass":
                    caching.clock.jump(seconds)
                case "jump":
                    caching.clock.set_wall(seconds)
                case "fail":
                    caching.source.script.append(AzureError("no answer"))
                case _:
                    with contextlib.suppress(AzureError):
                        assert caching.source.ends[await caching.text()] > caching.clock.steady()
