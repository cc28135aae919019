"""Several MICs as real processes: whatever happens to a leader, only one acts, and what it began is finished."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import make
from daemons.mic.members import Member, Stage, member, staged

OBJECTS = "azureassignedidentities"


def play(folder: Path, definitions: list[dict[str, Any]], story: Callable[[Stage, Member, Member], Any]) -> None:
    """Run a story in which `a` leads and `b` stands by."""

    async def run() -> None:
        async with staged(folder, definitions) as stage, pair(stage) as (first, second):
            await story(stage, first, second)

    asyncio.run(run())


@asynccontextmanager
async def pair(stage: Stage) -> AsyncIterator[tuple[Member, Member]]:
    """Start `a`, wait until it leads, start `b`."""
    async with member(stage, "a") as first:
        await stage.until(lambda: stage.leader() == "a", "a leads")
        async with member(stage, "b") as second:
            yield first, second


def assigned(stage: Stage, *names: str) -> bool:
    """Whether exactly these pods have their identity."""
    return stage.states() == {f"{name}-default-reader": "Assigned" for name in names}


def test_a_leader_that_was_stopped_writes_nothing_when_it_goes_on(
    tmp_path: Path, definitions: list[dict[str, Any]]
) -> None:
    """Stopped past its deadline, with work waiting for it: another leads, and none of its writes leaves the process."""

    async def story(stage: Stage, first: Member, second: Member) -> None:
        stage.add(make.node(), make.identity(), make.binding(), make.pod("one"))
        await stage.until(lambda: assigned(stage, "one"), "a assigns")
        assert stage.by("a")
        first.send(signal.SIGSTOP)
        # What `a` will find when it wakes: a pod whose object nobody could create.
        stage.refuse_creation_of = "never-default-reader"
        stage.add(make.pod("two"), make.pod("never"))
        await stage.until(lambda: stage.leader() == "b", "b takes over")
        await stage.until(lambda: assigned(stage, "one", "two"), "b assigns")
        since = len(stage.asked)
        first.send(signal.SIGCONT)
        stage.add(make.pod("three"))
        await stage.until(lambda: assigned(stage, "one", "two", "three"), "b goes on")
        await stage.until(lambda: "no longer leads" in log(stage, first), "a sees that it lost")
        assert [(one.method, one.path) for one in stage.by("a", since) if OBJECTS in one.path] == []
        assert [one.path for one in stage.by("a", since) if 200 <= one.status < 300] == []  # 0: not answered yet
        await second.until_health("Active")
        await first.until_health("Not Active")
        assert first.process.returncode is None

    play(tmp_path, definitions, story)


def test_a_leader_killed_in_the_middle_of_a_patch_has_a_successor(
    tmp_path: Path, definitions: list[dict[str, Any]]
) -> None:
    """The next one finishes the assignment, and knows from the record that it may take the identity off again."""

    async def story(stage: Stage, first: Member, _second: Member) -> None:
        stage.patch_may_end.clear()
        pod = make.pod()
        stage.add(make.node(), make.identity(), make.binding(), pod)
        await stage.until(lambda: stage.patched_by == ["a"], "a's PATCH")
        first.process.kill()
        stage.patch_may_end.set()
        await stage.until(lambda: assigned(stage, "web"), "b finishes")
        stage.remove_pod(pod)
        await stage.until(lambda: not stage.states() and not any(stage.carried.values()), "b takes it off")

    play(tmp_path, definitions, story)


def test_a_leader_that_is_cut_off_steps_down_and_comes_back(tmp_path: Path, definitions: list[dict[str, Any]]) -> None:
    """It stops by its own clock, without exiting; when the other is gone, it leads again."""

    async def story(stage: Stage, first: Member, second: Member) -> None:
        stage.add(make.node(), make.identity(), make.binding())
        stage.cut.add("a")
        await first.until_health("Not Active")
        await stage.until(lambda: stage.leader() == "b", "b takes over")
        stage.add(make.pod("one"))
        await stage.until(lambda: assigned(stage, "one"), "b assigns")
        stage.cut.clear()
        second.send(signal.SIGTERM)
        await stage.until(lambda: stage.leader() == "a", "a leads again")
        stage.add(make.pod("two"))
        await stage.until(lambda: assigned(stage, "one", "two"), "a assigns")
        assert first.process.returncode is None

    play(tmp_path, definitions, story)


def log(stage: Stage, one: Member) -> str:
    """What a member has logged."""
    return (stage.folder / f"{one.name}.log").read_text()
