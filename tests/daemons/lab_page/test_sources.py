"""What the page reads of a lab's logs: each answer once, older ones in their order, and what is lost is counted."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from daemons.lab_page.small_lab import LOG_LIMIT, NODES, SmallLab
from podidentity_lab.page.feed import EVENTS_LIMIT, ROWS_LIMIT, Feed
from podidentity_lab.page.sources import LINE_LIMIT, Sources, split
from podidentity_lab.page.trails import TRAILS_LIMIT
from waiting import eventually

START = 1795914586.0
STEPS, STEPS_WITH_CACHE = ("nmi", "imds", "keyvault"), ("nmi", "keyvault")


@pytest.fixture
async def small_lab(tmp_path: Path) -> AsyncIterator[SmallLab]:
    """A lab without any request yet."""
    async with SmallLab.running(tmp_path / "home") as lab:
        yield lab


@contextlib.asynccontextmanager
async def reading(lab: SmallLab) -> AsyncIterator[Feed]:
    """Read a lab into a feed; the block begins when the page would be shown."""
    feed = Feed()
    task = asyncio.create_task(Sources(lab.directory, feed).run())
    try:
        await eventually(feed.first_look.is_set, "the first look")
        yield feed
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def paths(feed: Feed) -> Counter[tuple[str, ...]]:
    """Return how many trails take each way through the stations."""
    return Counter(tuple(step.station for step in trail.steps) for trail in feed.trails.last(TRAILS_LIMIT))


async def test_older_steps_are_joined_as_live_ones_are(small_lab: SmallLab) -> None:
    """Requests from before the page was opened are one row each, although their steps stand in three logs.

    They are as close as IMDS allows: twenty a second and node, of one identity.
    """
    for number in range(120):
        small_lab.request(number, START + 0.025 * number, node=NODES[number % 2])
    async with reading(small_lab) as feed:
        assert paths(feed) == {STEPS: 120}
        times = [trail.head.time for trail in feed.trails.last(TRAILS_LIMIT)]
        assert times == sorted(times)
        assert (feed.totals.requests, len(feed.last_events)) == (0, 360)
        small_lab.request(1000, START + 10)
        await eventually(lambda: paths(feed) == {STEPS: 121}, "the live request")
        assert feed.totals.requests == 1


async def test_a_log_that_is_read_again_says_nothing_twice(small_lab: SmallLab) -> None:
    """When the API server ends the logs that are followed, the page goes on behind the last line that it has."""
    async with reading(small_lab) as feed:
        small_lab.request(1, START, cached=True)
        await eventually(lambda: paths(feed) == {STEPS_WITH_CACHE: 1}, "the first request")
        small_lab.cut()
        small_lab.request(2, START + 60, cached=True)
        await eventually(lambda: paths(feed) == {STEPS_WITH_CACHE: 2}, "the second request")
        small_lab.request(3, START + 120, cached=True)
        await eventually(lambda: paths(feed) == {STEPS_WITH_CACHE: 3}, "the third request")
        assert feed.totals.requests == 3


async def test_a_burst_arrives_or_is_counted(small_lab: SmallLab) -> None:
    """Of a burst that no log keeps as a whole, each request is counted as such, or its answers as unread.

    A browser gets a bounded number of rows in each batch.
    """
    burst = LOG_LIMIT + 500
    async with reading(small_lab) as feed:
        reader = feed.read()
        first = await anext(reader)
        assert first.startswith("event: batch\n")
        small_lab.log(START, "keyvault", "default/first")
        await eventually(lambda: feed.totals.requests == 1, "the first request")
        for number in range(burst):
            small_lab.log(START + 10 + number, "keyvault", f"default/pod-{number}")
        await eventually(lambda: feed.totals.requests + feed.totals.unread == burst + 1, "all to be counted")
        assert feed.totals.unread == 500
        assert len(feed.last_events) == EVENTS_LIMIT
        last = feed.trails.last(TRAILS_LIMIT)
        assert [trail.head.asker for trail in last[-2:]] == [f"default/pod-{burst - 2}", f"default/pod-{burst - 1}"]
        batch = await anext(message async for message in reader if '"requests": 10001' in message)
        assert batch.count('class=\\"trail\\"') == ROWS_LIMIT


async def test_lines_that_nmi_left_out_are_counted(small_lab: SmallLab) -> None:
    """NMI says how many lines of a pod it left out; the page adds them up."""
    async with reading(small_lab) as feed:
        small_lab.write(NODES[0], '2026-11-29T01:09:46.000Z INFO audit: msg="lines left out" address=10.0.0.3 count=41')
        await eventually(lambda: feed.totals.omitted == 41, "the lines to be counted")


async def test_a_line_without_an_end_is_given_up_and_counted() -> None:
    """Of a line that is too long nothing is kept, and what follows it is a line again."""

    async def chunks() -> AsyncIterator[str]:
        for chunk in ("one\ntwo", "\n", "x" * (LINE_LIMIT + 1), "x" * (LINE_LIMIT + 1), "end\nthree\n", "no end"):
            yield chunk

    given_up: list[int] = []
    assert [line async for line in split(chunks(), lambda: given_up.append(1))] == ["one", "two", "three"]
    assert len(given_up) == 1
