"""Several MICs as real processes: whatever happens to a leader, only one acts, and what it began is finished."""

import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import make
from daemons.mic.members import Member, Stage, member, staged

OBJECTS = "azureassignedidentities"


async def play(folder: Path, definitions: list[dict[str, Any]], story: Callable[[Stage, Member, Member], Any]) -> None:
    """Run a story in which `a` leads and `b` stands by."""
    async with staged(folder, definitions) as stage, pair(stage) as (first, second):
        await story(stage, first, second)


@asynccontextmanager
async def pair(stage: Stage) -> AsyncIterator[tuple[Member, Member]]:
    """Start `a`, wait until it leads, start `b`."""
    async with member(stage, "a") as first:
        await stage.until(lambda: stage.leader() == "a", "a leads")
        async with member(stage, "b") as second:
            yield first, second


def are_assigned(stage: Stage, *names: str) -> bool:
    """Whether exactly these pods have their identity."""
    return stage.states() == {f"{name}-default-reader": "Assigned" for name in names}


async def test_a_leader_that_was_stopped_writes_nothing_when_it_goes_on(
    tmp_path: Path, definitions: list[dict[str, Any]]
) -> None:
    """Once another leads, a MIC that was stopped and goes on sends none of the writes that wait for it."""

    async def story(stage: Stage, first: Member, second: Member) -> None:
        stage.add(make.node(), make.identity(), make.binding(), make.pod("one"))
        await stage.until(lambda: are_assigned(stage, "one"), "a assigns")
        assert stage.by("a")
        first.send(signal.SIGSTOP)
        # What `a` will find when it wakes: a pod whose object nobody could create.
        stage.refuse_creation_of = "never-default-reader"
        stage.add(make.pod("two"), make.pod("never"))
        await stage.until(lambda: stage.leader() == "b", "b takes over")
        await stage.until(lambda: are_assigned(stage, "one", "two"), "b assigns")
        since = len(stage.write_requests)
        first.send(signal.SIGCONT)
        stage.add(make.pod("three"))
        await stage.until(lambda: are_assigned(stage, "one", "two", "three"), "b goes on")
        await stage.until(lambda: "no longer leads" in log(stage, first), "a sees that it lost")
        late_writes = stage.by("a", since)
        assert [(request.method, request.path) for request in late_writes if OBJECTS in request.path] == []
        assert [request.path for request in late_writes if 200 <= request.status < 300] == []  # 0: no response yet
        await second.until_health("Active")
        await first.until_health("Not Active")
        assert first.process.returncode is None

    await play(tmp_path, definitions, story)


async def test_a_leader_killed_in_the_middle_of_a_patch_has_a_successor(
    tmp_path: Path, definitions: list[dict[str, Any]]
) -> None:
    """The next leader finishes the assignment, and knows from the record that it may remove the identity."""

    async def story(stage: Stage, first: Member, _second: Member) -> None:
        stage.patch_may_end.clear()
        pod = make.pod()
        stage.add(make.node(), make.identity(), make.binding(), pod)
        await stage.until(lambda: stage.patched_by == ["a"], "a's PATCH")
        first.process.kill()
        stage.patch_may_end.set()
        await stage.until(lambda: are_assigned(stage, "web"), "b finishes")
        stage.remove_pod(pod)
        await stage.until(lambda: not stage.states() and not any(stage.identities.values()), "b takes it off")

    await play(tmp_path, definitions, story)


async def test_a_leader_that_is_cut_off_steps_down_and_comes_back(
    tmp_path: Path, definitions: list[dict[str, Any]]
) -> None:
    """A leader without a connection steps down by its own clock, keeps running, and leads again later."""

    async def story(stage: Stage, first: Member, second: Member) -> None:
        stage.add(make.node(), make.identity(), make.binding())
        stage.partitioned.add("a")
        await first.until_health("Not Active")
        await stage.until(lambda: stage.leader() == "b", "b takes over")
        stage.add(make.pod("one"))
        await stage.until(lambda: are_assigned(stage, "one"), "b assigns")
        stage.partitioned.clear()
        second.send(signal.SIGTERM)
        await stage.until(lambda: stage.leader() == "a", "a leads again")
        stage.add(make.pod("two"))
        await stage.until(lambda: are_assigned(stage, "one", "two"), "a assigns")
        assert first.process.returncode is None

    await play(tmp_path, definitions, story)


def log(stage: Stage, mic: Member) -> str:
    """Return the log of a member."""
    return (stage.folder / f"{mic.name}.log").read_text()
