"""Who leads: against a real server, with upstream's records, and with every way to lose a term."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest

from clocks import JumpingClock
from daemons.kube.scripted import Reply, Request, ScriptedServer
from podidentity.kube import election
from podidentity.kube.api import Api
from podidentity.kube.election import Candidate, Election
from podidentity.kube.locks import ANNOTATION
from waiting import eventually

ENDPOINTS = "/api/v1/namespaces/default/endpoints/aad-pod-identity-mic"
LEASE = "/apis/coordination.k8s.io/v1/namespaces/default/leases/aad-pod-identity-mic"
WALL = 1_700_000_000.0


@pytest.fixture
def clock() -> JumpingClock:
    """Return a clock that only tests move."""
    return JumpingClock(hasty=False)


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever leaves has all the time to give up the lock: that is real time, and machines may be slow."""
    monkeypatch.setattr(election, "RELEASE_SECONDS", 60.0)


class Running:
    """A candidate at work, and whether its `lead` runs."""

    def __init__(self, election: Election) -> None:
        self.election = election
        self.busy = False
        self.task = asyncio.create_task(election.run(self._lead))

    def leads(self) -> bool:
        """Whether it believes that it may write."""
        return self.election.leading

    async def _lead(self) -> None:
        self.busy = True
        try:
            await asyncio.Event().wait()
        finally:
            self.busy = False


@asynccontextmanager
async def standing(api: Api, identity: str, duration_seconds: float = 15) -> AsyncIterator[Running]:
    """Run a candidate, and stop it in order at the end."""
    candidate = Candidate(
        identity,
        duration_seconds=duration_seconds,
        jitter=lambda: 0.0,
        wall_clock=lambda: WALL + api.clock.steady(),
    )
    running = Running(Election(api, candidate))
    try:
        yield running
    finally:
        running.task.cancel()
        await asyncio.gather(running.task, return_exceptions=True)


def _record(server: ScriptedServer) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(server.objects[ENDPOINTS]["metadata"]["annotations"][ANNOTATION])
    return record


def _held_by(holder: str, renew_time: str = "2023-11-14T22:30:00Z", seconds: int = 15) -> dict[str, Any]:
    record = {
        "holderIdentity": holder,
        "leaseDurationSeconds": seconds,
        "acquireTime": "2023-11-14T22:00:00Z",
        "renewTime": renew_time,
        "leaderTransitions": 4,
    }
    metadata = {"namespace": "default", "name": "aad-pod-identity-mic", "annotations": {ANNOTATION: json.dumps(record)}}
    return {"metadata": metadata, "subsets": None}


async def _settle(clock: JumpingClock, candidates: int = 1) -> None:
    """Wait until every candidate waits for time to pass."""
    await eventually(lambda: clock.waiting == candidates, "a moment of rest")


async def test_the_first_candidate_writes_both_locks(api: Api, server: ScriptedServer) -> None:
    """The Endpoints annotation is client-go's, field for field, so that upstream's MIC waits for us."""
    async with standing(api, "mic-0") as mic:
        await eventually(lambda: mic.busy, "the first term")
        record = _record(server)
        assert record == {
            "holderIdentity": "mic-0",
            "leaseDurationSeconds": 15,
            "acquireTime": "2023-11-14T22:30:00Z",
            "renewTime": "2023-11-14T22:30:00Z",
            "leaderTransitions": 0,
        }
        spec = server.objects[LEASE]["spec"]
        assert (spec["holderIdentity"], spec["renewTime"]) == ("mic-0", "2023-11-14T22:30:00.000000Z")
        assert (mic.election.leading, mic.election.terms, mic.election.leader) == (True, 1, "mic-0")


async def test_a_leader_renews_and_keeps_what_others_wrote(
    api: Api, server: ScriptedServer, clock: JumpingClock
) -> None:
    """A term goes on past every deadline while renewals succeed, also when somebody edits the object meanwhile."""
    async with standing(api, "mic-0") as mic:
        await eventually(lambda: mic.busy, "the first term")
        for beat in range(1, 9):
            if beat == 4:
                server.objects[ENDPOINTS]["metadata"]["labels"] = {"edited": "by-hand"}
                server.put(ENDPOINTS, server.objects[ENDPOINTS])
            clock.jump(3.75)
            renew_time = datetime.fromtimestamp(int(WALL + clock.steady()), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            await eventually(lambda time=renew_time: _record(server)["renewTime"] == time, f"renewal {beat}")  # type: ignore[misc]
            await _settle(clock)
            assert mic.leads()
        assert mic.election.terms == 1
        assert _record(server)["acquireTime"] == "2023-11-14T22:30:00Z"
        assert _record(server)["leaderTransitions"] == 0
        assert server.objects[ENDPOINTS]["metadata"]["labels"] == {"edited": "by-hand"}


async def test_upstreams_leader_is_respected_until_its_record_expires(
    api: Api, server: ScriptedServer, clock: JumpingClock
) -> None:
    """Ours waits while upstream renews, whatever its clock says, and takes over once it has not for the whole term."""
    server.put(ENDPOINTS, _held_by("upstream", "1999-01-01T00:00:00Z"))
    async with standing(api, "mic-0") as mic:
        for beat in range(8):
            server.put(ENDPOINTS, _held_by("upstream", f"1999-01-01T00:00:{beat:02d}Z"))
            clock.jump(3.75)
            await _settle(clock)
            assert not mic.leads()
            assert mic.election.leader == "upstream"
        for _ in range(4):  # seen anew at the last beat: 15 s later it is not yet *more* than its term
            clock.jump(3.75)
            await _settle(clock)
        assert not mic.busy
        clock.jump(3.75)
        await eventually(lambda: mic.busy, "taking over")
        assert _record(server)["leaderTransitions"] == 5


async def test_a_released_lock_is_taken_at_once(api: Api, server: ScriptedServer, clock: JumpingClock) -> None:
    """A leader that stops in order gives the locks up, so its successor leads after one retry and not a whole term."""
    async with standing(api, "mic-0") as first:
        await eventually(lambda: first.busy, "the first term")
        async with standing(api, "mic-1") as second:
            await _settle(clock, 2)
            assert not second.busy
            first.task.cancel()
            await asyncio.gather(first.task, return_exceptions=True)
            assert _record(server)["holderIdentity"] == ""
            clock.jump(3.75)
            await eventually(lambda: second.busy, "the second term")
        assert not second.busy


async def test_no_term_outlives_its_renewals(api: Api, server: ScriptedServer, clock: JumpingClock) -> None:
    """Cut off from the API server, a leader stops at half the term, before anybody else may begin, and stands again."""
    async with standing(api, "mic-0") as mic:
        await eventually(lambda: mic.busy, "the first term")
        for _ in range(40):
            server.answer_next(Reply.refusal(500))
        clock.jump(3.75)
        await _settle(clock)
        assert mic.leads()
        clock.jump(3.75)
        assert not mic.leads()
        await eventually(lambda: not mic.busy, "stepping down")
        assert not mic.task.done()
        server._script.clear()
        await _settle(clock)
        clock.jump(10)
        await eventually(lambda: mic.busy, "the second term")
        assert mic.election.terms == 2


async def test_a_stopped_process_does_not_lead_when_it_wakes(api: Api, clock: JumpingClock) -> None:
    """After SIGSTOP nothing in the process has run, yet `leading` is False in the first instant, before any task is."""
    async with standing(api, "mic-0") as mic:
        await eventually(lambda: mic.busy, "the first term")
        clock.jump(7.5)
        assert not mic.leads()
        assert mic.busy
        # It stands again at once, and nobody else does: between the terms it is not busy for a moment only.
        await eventually(lambda: mic.election.terms == 2, "stepping down, and the second term")


async def test_one_lost_renewal_does_not_cost_the_term(api: Api, server: ScriptedServer, clock: JumpingClock) -> None:
    """After a failure the next try comes soon enough that several fit before the deadline."""
    async with standing(api, "mic-0") as mic:
        await eventually(lambda: mic.busy, "the first term")
        for _ in range(2):
            server.answer_next(Reply.refusal(500))
        clock.jump(3.75)
        await _settle(clock)
        clock.jump(3.75 / 4)
        await _settle(clock)
        clock.jump(3.75 / 4)
        await _settle(clock)
        clock.jump(3.75 / 2)
        assert mic.leads()
        assert mic.election.terms == 1


async def test_a_lock_taken_by_another_ends_the_term(api: Api, server: ScriptedServer, clock: JumpingClock) -> None:
    """Whoever finds another's name in the lock stops at the next renewal and leaves no Lease behind to wait for."""
    async with standing(api, "mic-0") as mic:
        await eventually(lambda: mic.busy, "the first term")
        server.put(ENDPOINTS, _held_by("upstream"))
        clock.jump(3.75)
        await eventually(lambda: not mic.busy, "stepping down")
        await _settle(clock)
        assert (mic.election.leading, mic.election.leader) == (False, "upstream")
        assert server.objects[LEASE]["spec"]["holderIdentity"] == ""


async def test_a_lease_of_another_is_waited_for(api: Api, server: ScriptedServer, clock: JumpingClock) -> None:
    """A candidate leads with both locks only: a predecessor that still holds the Lease may still be writing."""
    spec = {"holderIdentity": "mic-9", "leaseDurationSeconds": 15, "renewTime": "2023-11-14T22:30:00.000000Z"}
    server.put(LEASE, {"metadata": {"namespace": "default", "name": "aad-pod-identity-mic"}, "spec": spec})
    async with standing(api, "mic-0") as mic:
        for _ in range(4):
            await _settle(clock)
            assert not mic.leads()
            clock.jump(3.75)
        await _settle(clock)
        clock.jump(3.75)
        await eventually(lambda: mic.busy, "the expiry of the Lease")


async def test_a_leader_that_is_gone_costs_one_term(api: Api, server: ScriptedServer, clock: JumpingClock) -> None:
    """Both records were seen all along, so both expire together: the second is not waited for after the first."""
    spec = {"holderIdentity": "mic-9", "leaseDurationSeconds": 15, "renewTime": "2023-11-14T22:30:00.000000Z"}
    server.put(LEASE, {"metadata": {"namespace": "default", "name": "aad-pod-identity-mic"}, "spec": spec})
    server.put(ENDPOINTS, _held_by("mic-9"))
    async with standing(api, "mic-0") as mic:
        for _ in range(5):
            await _settle(clock)
            assert not mic.busy
            clock.jump(3.75)
        await eventually(lambda: mic.busy, "the term after theirs")


async def test_a_role_without_leases_leads_with_endpoints_alone(
    api: Api, server: ScriptedServer, caplog: pytest.LogCaptureFixture, clock: JumpingClock
) -> None:
    """Under upstream's role the Lease is refused: one warning names the right, and the term begins."""

    def about_leases(request: Request) -> bool:
        return "/leases/" in request.path

    server.answer_next(Reply.refusal(403, 'cannot get resource "leases"'), to=about_leases)
    async with standing(api, "mic-0") as mic:
        await eventually(lambda: mic.busy, "the first term")
        clock.jump(3.75)
        await _settle(clock)
        assert mic.leads()
    assert len([request for request in server.requests if "leases" in request.path]) == 1
    assert [record.levelname for record in caplog.records if '"leases"' in record.getMessage()] == ["WARNING"]


async def test_a_forbidden_lock_is_one_warning_and_no_readiness(
    api: Api, server: ScriptedServer, caplog: pytest.LogCaptureFixture, clock: JumpingClock
) -> None:
    """A candidate that may not read its lock says so, once; allowed to, it leads, and nothing is said any more."""

    def about_the_lock(request: Request) -> bool:
        return "/endpoints/" in request.path

    for _ in range(2):
        server.answer_next(Reply.refusal(403, 'cannot get resource "endpoints"'), to=about_the_lock)
    async with standing(api, "mic-0") as mic:
        for _ in range(2):
            await _settle(clock)
            assert 'cannot get resource "endpoints"' in mic.election.refusal
            assert not mic.leads()
            clock.jump(3.75)
        await eventually(lambda: mic.busy, "the first term")
        assert mic.election.refusal == ""
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len([text for text in warnings if '"endpoints"' in text]) == 1
    assert "namespace default" in warnings[0]


async def test_a_candidate_that_waits_says_for_whom(
    api: Api, server: ScriptedServer, caplog: pytest.LogCaptureFixture, clock: JumpingClock
) -> None:
    """Once for each leader: a MIC that does nothing for a minute is not to be a riddle."""
    caplog.set_level("INFO")
    server.put(ENDPOINTS, _held_by("mic-7", seconds=60))
    async with standing(api, "mic-0"):
        for _ in range(3):
            await _settle(clock)
            clock.jump(3.75)
    assert [record.getMessage() for record in caplog.records if "mic-7" in record.getMessage()] == [
        "mic-7 leads; mic-0 stands by"
    ]


async def test_an_unreadable_record_is_nobodys(api: Api, server: ScriptedServer) -> None:
    """An annotation that is no record cannot be renewed by anybody, so it keeps nobody out."""
    broken = _held_by("x")
    broken["metadata"]["annotations"][ANNOTATION] = "{not json"
    server.put(ENDPOINTS, broken)
    async with standing(api, "mic-0") as mic:
        await eventually(lambda: mic.busy, "the term")


async def test_a_write_whose_answer_never_came_is_given_up_too(
    api: Api, server: ScriptedServer, clock: JumpingClock
) -> None:
    """Told to stop while it renews, a leader does not know what is stored: it looks, and gives up what is its own."""
    async with standing(api, "mic-0") as mic:
        await eventually(lambda: mic.busy, "the first term")
        await _settle(clock)
        for path in (ENDPOINTS, LEASE):
            server.put(path, server.objects[path])
    record = json.loads(server.objects[ENDPOINTS]["metadata"]["annotations"][ANNOTATION])
    assert record["holderIdentity"] == ""
    assert not server.objects[LEASE]["spec"].get("holderIdentity")


@pytest.mark.parametrize("path", [ENDPOINTS, LEASE])
@pytest.mark.parametrize("before", ["nothing", "released", "expired"])
async def test_a_write_that_arrives_after_the_end_has_no_effect(
    api: Api, server: ScriptedServer, clock: JumpingClock, path: str, before: str
) -> None:
    """Told to stop while it takes the lock, a candidate cannot know when the server writes: that write conflicts."""
    if before != "nothing":
        server.put(ENDPOINTS, _held_by("" if before == "released" else "mic-9", seconds=1))
    late = server.hold_next(lambda request: request.method in {"POST", "PUT"} and request.path in path)
    async with standing(api, "mic-0") as mic:
        if before == "expired":
            await _settle(clock)
            clock.jump(3.75)
        await eventually(late.arrived, "the write")
        assert not mic.busy
    assert server.carry_out(late).status == 409
    assert _record(server)["holderIdentity"] == ""
    assert server.objects[LEASE]["spec"]["holderIdentity"] == "" if path == LEASE else True


async def test_others_who_write_do_not_keep_the_lock_held(
    api: Api, server: ScriptedServer, clock: JumpingClock
) -> None:
    """Each time that it gives the lock up, somebody else has just written to the object: it tries again."""
    async with standing(api, "mic-0") as mic:
        await eventually(lambda: mic.busy, "the first term")
        await _settle(clock)
        clock.hasty = True

        def overtaken(request: Request) -> bool:
            if request.method == "PUT" and request.path == ENDPOINTS:
                server.put(ENDPOINTS, server.objects[ENDPOINTS])
                return True
            return False

        for _ in range(3):
            server.answer_next(Reply.refusal(409), to=overtaken)
    assert _record(server)["holderIdentity"] == ""


async def test_a_lock_is_given_up_though_the_server_stumbles(
    api: Api, server: ScriptedServer, clock: JumpingClock
) -> None:
    """An error, and a request that is never answered, are tried once more: whoever comes next need not wait a term."""
    async with standing(api, "mic-0") as mic:
        await eventually(lambda: mic.busy, "the first term")
        await _settle(clock)
        clock.hasty = True
        for reply in (Reply.refusal(500), None):
            server.answer_next(reply, to=lambda request: request.method == "PUT" and request.path == ENDPOINTS)
    assert _record(server)["holderIdentity"] == ""


async def test_a_hanging_renewal_does_not_cost_the_term(api: Api, server: ScriptedServer, clock: JumpingClock) -> None:
    """A request without an answer is given up early enough that another fits before the deadline."""
    # A request's own limit is real time: here two seconds, so that a slow machine answers the next one within it.
    async with standing(api, "mic-0", duration_seconds=16) as mic:
        await eventually(lambda: mic.busy, "the first term")
        await _settle(clock)
        server.answer_next(None)
        clock.jump(4)
        await _settle(clock)
        clock.jump(1)
        await _settle(clock)
        clock.jump(4)
        assert mic.leads()
        assert mic.election.terms == 1


async def test_a_slow_renewal_counts_from_its_beginning(api: Api, server: ScriptedServer, clock: JumpingClock) -> None:
    """Others count from when the record was written, which may be as early as when we asked: so do we."""
    async with standing(api, "mic-0") as mic:
        await eventually(lambda: mic.busy, "the first term")
        await _settle(clock)

        def slow(request: Request) -> bool:
            if request.method == "PUT" and "/endpoints/" in request.path:
                clock.jump(3)
            return False

        server.answer_next(Reply(200, {}), to=slow)
        clock.jump(3.75)
        await _settle(clock)
        clock.jump(7.5 - 3)
        assert not mic.leads()


async def test_two_candidates_never_lead_at_once(api: Api, server: ScriptedServer, clock: JumpingClock) -> None:
    """Whatever is refused or taken away, at no moment do both believe that they lead, and both get their turn."""
    async with standing(api, "mic-0") as first, standing(api, "mic-1") as second:

        def at_rest() -> bool:
            assert not (first.leads() and second.leads())
            return clock.waiting == 2

        leaders = set()
        for beat in range(40):
            await eventually(at_rest, "a moment of rest")
            leaders |= {mic.election.leader for mic in (first, second) if mic.leads()}
            if beat % 9 == 4:
                server.put(ENDPOINTS, _held_by("", seconds=1))
            if beat % 6 == 5:
                server.answer_next(Reply.refusal(500), to=lambda request: request.method == "PUT")
            clock.jump(1.9)
        assert leaders == {"mic-0", "mic-1"}


async def test_an_error_of_the_work_ends_the_election(api: Api) -> None:
    """A bug in the sync loop must reach the daemon's outermost loop, not be swallowed while the lock is renewed."""

    async def broken() -> None:
        raise RuntimeError("bug")

    election = Election(api, Candidate("mic-0"))
    with pytest.raises(ExceptionGroup) as caught:
        await election.run(broken)
    assert caught.group_contains(RuntimeError, match="bug")
    assert not election.leading
