"""A store that follows the cluster: through cuts, silence, 410, garbage and servers that hang up."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from clocks import JumpingClock
from daemons.kube.scripted import Reply, Request, ScriptedServer, Watch, pod
from podidentity.core.model.identities import ObjectKey
from podidentity.core.model.snapshot import Pod
from podidentity.kube.api import TURN_BYTES, Api, Selection
from podidentity.kube.reflector import Reflector, Watching, describe
from podidentity.kube.resources import BINDINGS, EXCEPTIONS, IDENTITIES, PODS, Kind, Raw, StoredObject
from podidentity.kube.store import Change, Store, addresses
from waiting import eventually

WEB, API = ObjectKey("team", "web"), ObjectKey("team", "api")
PATIENT = Watching(jitter=lambda: 0.0)
IMPATIENT = Watching(silence_seconds=0.02, jitter=lambda: 0.0)


@asynccontextmanager
async def following(
    api: Api, watching: Watching = PATIENT, kind: Kind[Pod] = PODS, **options: Any
) -> AsyncIterator[Reflector[Pod]]:
    """Run a reflector on pods whose first list is in."""
    reflector = Reflector(api, kind, Store[Pod](), watching=watching, **options)
    task = asyncio.create_task(reflector.run())
    try:
        await reflector.store.wait_until_synced()
        yield reflector
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def record_changes(store: Store[Pod]) -> list[tuple[str, str]]:
    """Collect changes as (what, name)."""
    changes: list[tuple[str, str]] = []

    def note(change: Change[Pod]) -> None:
        verb = "added" if change.previous is None else "deleted" if change.current is None else "updated"
        changes.append((verb, change.key.name))

    store.subscribe(note)
    return changes


def _put_pod(server: ScriptedServer, name: str, ip: str = "", **metadata: Any) -> dict[str, Any]:
    document: dict[str, Any] = server.put(f"/api/v1/namespaces/team/pods/{name}", pod(name, ip, **metadata))
    return document


async def test_a_refusal_that_is_cut_off_ends_nothing(api: Api, server: ScriptedServer) -> None:
    """A proxy says 503 and never to its end why: the watch is tried again like after any other failure."""
    _put_pod(server, "web")
    truncated_reply = Reply(503, "no", {"Content-Length": "999"})
    server.answer_next(truncated_reply, to=lambda request: request.is_watch)
    async with following(api, IMPATIENT):
        await _watch(server)
    assert server.count("GET", watch=True) >= 2


async def _watch(server: ScriptedServer, number: int = 1) -> Watch:
    await eventually(lambda: len(server.watches) >= number, f"watch {number}")
    return server.watches[number - 1]


async def test_list_then_events(api: Api, server: ScriptedServer) -> None:
    """What exists is listed, what changes arrives by watch, and indexes follow both."""
    _put_pod(server, "web", "10.0.0.1")
    async with following(api, selection=Selection(fields="spec.nodeName=n1")) as reflector:
        by_address = reflector.store.index(addresses)
        assert [item.key for item in by_address.find("10.0.0.1")] == [WEB]
        watch = await _watch(server)
        assert watch.request.query["resourceVersion"] == str(server.version)
        assert watch.request.query["fieldSelector"] == "spec.nodeName=n1"
        assert 300 <= int(watch.request.query["timeoutSeconds"]) <= 600
        watch.send("ADDED", _put_pod(server, "api", "10.0.0.2"))
        watch.send("MODIFIED", _put_pod(server, "web", "10.0.0.3"))
        await eventually(lambda: by_address.find("10.0.0.3"), "the new address")
        assert by_address.find("10.0.0.1") == ()
        watch.send("DELETED", pod("web"))
        await eventually(lambda: WEB not in reflector.store, "the deletion")
        assert set(by_address.keys()) == {"10.0.0.2"}
        assert reflector.lists == 1


async def test_the_first_list_is_announced_once(api: Api, server: ScriptedServer) -> None:
    """The daemon freezes the garbage collector there, which it must do once and with everything in place."""
    _put_pod(server, "web")
    sizes: list[int] = []
    store = Store[Pod]()
    reflector = Reflector(api, PODS, store, watching=PATIENT, on_first_list=lambda: sizes.append(len(store)))
    task = asyncio.create_task(reflector.run())
    (await _watch(server)).send("ERROR", {"kind": "Status", "code": 410})
    await eventually(lambda: reflector.lists == 2, "a second list")
    task.cancel()
    assert sizes == [1]


@pytest.mark.parametrize("way", ["end", "cut"])
async def test_a_watch_that_ends_is_resumed_where_it_was(way: str, api: Api, server: ScriptedServer) -> None:
    """Neither the server's time-out nor a broken connection costs a list; bookmarks move the place to resume from."""
    async with following(api) as reflector:
        watch = await _watch(server)
        watch.send("BOOKMARK", {"kind": "Pod", "metadata": {"resourceVersion": "777"}})
        await eventually(lambda: reflector._version == "777", "the bookmark")
        getattr(watch, way)()
        assert (await _watch(server, 2)).request.query["resourceVersion"] == "777"
        assert reflector.lists == 1


async def test_a_silent_watch_is_dropped_and_resumed(
    api: Api, server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    """A firewall that forgot the connection tells nobody: without even a bookmark the watch counts as dead."""
    caplog.set_level("INFO")
    _put_pod(server, "web")
    async with following(api, IMPATIENT) as reflector:
        await _watch(server, 3)
        assert {watch.request.query["resourceVersion"] for watch in server.watches} == {str(server.version)}
        assert reflector.lists == 1
        assert WEB in reflector.store
    assert "watch pods: silent for 0.02 s; resuming" in caplog.messages


@pytest.mark.parametrize("inside", [True, False], ids=["in the stream", "as the answer"])
async def test_410_lists_again_and_tells_only_differences(*, inside: bool, api: Api, server: ScriptedServer) -> None:
    """After 410 subscribers see what happened meanwhile as additions, updates and deletions, and nothing else."""
    for name in ("stays", "goes", "changes", "reborn"):
        _put_pod(server, name)
    async with following(api) as reflector:
        changes = record_changes(reflector.store)
        watch = await _watch(server)
        del server.objects["/api/v1/namespaces/team/pods/goes"]
        _put_pod(server, "changes", "10.0.0.9")
        _put_pod(server, "reborn", uid="another")
        _put_pod(server, "comes")
        if inside:
            watch.send("ERROR", {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"})
        else:
            server.answer_next(Reply.refusal(410, "too old"), to=lambda request: request.is_watch)
            watch.end()
        await eventually(lambda: reflector.lists == 2, "a second list")
        assert sorted(changes) == [
            ("added", "comes"),
            ("added", "reborn"),
            ("deleted", "goes"),
            ("deleted", "reborn"),
            ("updated", "changes"),
        ]
        assert changes.index(("deleted", "reborn")) < changes.index(("added", "reborn"))


async def test_a_server_that_always_says_410_is_not_flooded(
    api: Api, server: ScriptedServer, clock: JumpingClock
) -> None:
    """Lists are the dearest requests there are: pauses between them grow although each watch opens well."""
    async with following(api):
        for number in range(1, 8):
            (await _watch(server, number)).send("ERROR", {"kind": "Status", "code": 410})
        await _watch(server, 8)
    assert clock.slept == [0.5, 1, 2, 4, 8, 15, 15]


async def test_a_server_that_hangs_up_at_once_is_not_asked_in_a_loop(
    api: Api, server: ScriptedServer, clock: JumpingClock
) -> None:
    """A proxy that answers a watch with 200 and closes it is asked again after pauses, not in a busy loop."""
    for _ in range(4):
        server.on_next_watch(Watch.end)
    async with following(api):
        await _watch(server, 5)
    assert clock.slept == [0.5, 1, 2, 4]


async def test_pauses_grow_and_end(api: Api, server: ScriptedServer, clock: JumpingClock) -> None:
    """While the API server refuses, pauses double up to the limit; the server's own wish counts when it is longer."""
    for _ in range(6):
        server.answer_next(Reply.refusal(500))
    server.answer_next(Reply(429, {"message": "busy", "details": {"retryAfterSeconds": 20}}))
    async with following(api) as reflector:
        await _watch(server)
        assert clock.slept == [0.5, 1, 2, 4, 8, 15, 20]
        (await _watch(server)).send("BOOKMARK", {"metadata": {"resourceVersion": "1"}})
        await eventually(lambda: reflector.failures == 0, "recovery")


def test_pauses_are_jittered() -> None:
    """Daemons that lost the API server together do not come back together: up to half of each pause is random."""
    assert [Watching(jitter=lambda: 0.0).pause_seconds(failures) for failures in (1, 4, 99)] == [0.5, 4, 15]
    assert Watching(jitter=lambda: 0.5).pause_seconds(4) == 3
    assert Watching(jitter=lambda: 1.0).pause_seconds(4) == 2


GARBAGE = [
    b"\x00\xff not json\n",
    b'{"type":"ADDED","object":\n',
    b'["type"]\n',
]


@pytest.mark.parametrize("garbage", GARBAGE)
async def test_garbage_in_the_stream_leads_to_a_fresh_list(garbage: bytes, api: Api, server: ScriptedServer) -> None:
    """After bytes that are no event, an event may have been lost, so the objects are listed again."""
    async with following(api) as reflector:
        watch = await _watch(server)
        _put_pod(server, "missed")
        watch.send_bytes(garbage)
        await eventually(lambda: ObjectKey("team", "missed") in reflector.store, "the fresh list")


async def test_of_a_namespace_a_bounded_number_is_kept(
    api: Api, server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither a list nor a watch brings more of it, readable or not; other namespaces have their own number."""
    for name in ("a", "b", "c"):
        _put_pod(server, name)
    server.put("/api/v1/namespaces/other/pods/d", pod("d", namespace="other"))
    odd = {"metadata": {"namespace": "team", "name": "odd", "labels": 5, "resourceVersion": "900"}}
    async with following(api, kind=replace(PODS, namespace_limit=2)) as reflector:
        kept = {ObjectKey("team", "a"), ObjectKey("team", "b"), ObjectKey("other", "d")}
        assert reflector.store.as_mapping().keys() == kept
        watch = await _watch(server)
        watch.send("MODIFIED", _put_pod(server, "a", "10.0.0.9"))
        watch.send("ADDED", _put_pod(server, "e"))
        watch.send("ADDED", odd)
        watch.send("DELETED", pod("b"))
        watch.send("MODIFIED", _put_pod(server, "c"))
        await eventually(lambda: ObjectKey("team", "c") in reflector.store, "the object that has room now")
        assert reflector.store.as_mapping().keys() == kept - {ObjectKey("team", "b")} | {ObjectKey("team", "c")}
        assert reflector.odd == {}
    warnings = [message for message in caplog.messages if "more than 2 pods" in message]
    assert len(warnings) == 1
    assert warnings[0].startswith("namespace team has")


def test_what_tenants_write_has_such_a_bound() -> None:
    """Identities, bindings and exceptions, which every NMI keeps, are limited to 10,000 of a namespace."""
    assert {kind.namespace_limit for kind in (IDENTITIES, BINDINGS, EXCEPTIONS)} == {10_000}


async def test_an_object_that_turns_odd_leaves_the_store(api: Api, server: ScriptedServer) -> None:
    """The last readable state is no longer true, so nobody may act on it; once it is readable again it is back."""
    _put_pod(server, "web")
    _put_pod(server, "api")
    async with following(api) as reflector:
        watch = await _watch(server)
        watch.send(
            "MODIFIED", {"metadata": {"namespace": "team", "name": "web", "labels": 5, "resourceVersion": "900"}}
        )
        await eventually(lambda: WEB not in reflector.store, "the odd object out")
        assert reflector.odd.keys() == {WEB}
        assert API in reflector.store
        watch.end()
        second = await _watch(server, 2)
        assert second.request.query["resourceVersion"] == "900"
        second.send("MODIFIED", _put_pod(server, "web"))
        await eventually(lambda: WEB in reflector.store, "the object back")
        assert reflector.odd == {}


async def test_unknown_events_are_passed_over(api: Api, server: ScriptedServer) -> None:
    """A later API version may send kinds of events that we do not know."""
    async with following(api) as reflector:
        watch = await _watch(server)
        watch.send("CELEBRATED", pod("web", resourceVersion="5"))
        watch.send("ADDED", _put_pod(server, "api"))
        await eventually(lambda: API in reflector.store, "the next event")
        assert WEB not in reflector.store


async def test_confirmation_ages_with_silence(api: Api, server: ScriptedServer) -> None:
    """NMI stops trusting a store that nothing has confirmed: only the server's own signs of life renew it."""
    clock = JumpingClock(hasty=False)
    api.clock = clock
    reflector = Reflector(api, PODS, Store[Pod](), watching=PATIENT)
    assert reflector.unconfirmed_seconds == float("inf")
    assert describe((reflector,), 120) == ("pods: not listed yet",)
    task = asyncio.create_task(reflector.run())
    watch = await _watch(server)
    await eventually(lambda: reflector.unconfirmed_seconds == 0, "the watch")
    clock.jump(121)
    assert reflector.unconfirmed_seconds == 121
    assert describe((reflector,), 120) == ("pods: not confirmed for 121 s",)
    watch.send("BOOKMARK", {"metadata": {"resourceVersion": "5"}})
    await eventually(lambda: reflector.unconfirmed_seconds == 0, "the bookmark")
    assert describe((reflector,), 120) == ()
    task.cancel()


async def test_a_slow_list_confirms_only_its_beginning(api: Api, server: ScriptedServer, clock: JumpingClock) -> None:
    """What a list shows may have changed since it began; until a watch is open nothing vouches for more."""

    def slow(_: Request) -> bool:
        clock.jump(50)
        return False

    server.answer_next(Reply(200, {}), to=slow)
    server.answer_next(None, to=lambda request: request.is_watch)
    async with following(api) as reflector:
        assert reflector.unconfirmed_seconds >= 50


async def test_an_api_server_that_restarts(api: Api, server: ScriptedServer) -> None:
    """Cut off and refused for a while, the store keeps what it knows, then catches up by watch alone."""
    _put_pod(server, "web")
    async with following(api) as reflector:
        watch = await _watch(server)
        for _ in range(3):
            server.on_next_watch(Watch.cut)
        watch.cut()
        fifth = await _watch(server, 5)
        assert WEB in reflector.store
        fifth.send("ADDED", _put_pod(server, "api"))
        await eventually(lambda: API in reflector.store, "the next event")
        assert reflector.lists == 1


async def test_a_refused_watch_forgets_its_version(api: Api, server: ScriptedServer) -> None:
    """After a restore from backup the server knows no version as new as ours: asking for it again would never end."""
    async with following(api) as reflector:
        watch = await _watch(server)
        server.answer_next(Reply.refusal(504, "Too large resource version"), to=lambda request: request.is_watch)
        server.version = 3
        watch.end()
        assert (await _watch(server, 2)).request.query["resourceVersion"] == "3"
        assert reflector.lists == 2


async def test_a_list_that_expires_between_pages_begins_anew(api: Api, server: ScriptedServer) -> None:
    """The continue token of a long list can expire: half a list must never become the store."""
    for number in range(501):
        _put_pod(server, f"p{number}")

    def second_page(request: Request) -> bool:
        return "continue" in request.query

    server.answer_next(Reply.refusal(410, "continue token too old"), to=second_page)
    async with following(api) as reflector:
        assert len(reflector.store) == 501


async def test_events_split_across_chunks(api: Api, server: ScriptedServer) -> None:
    """The network cuts bytes where it likes; two events in one chunk and one in two are all understood."""
    async with following(api) as reflector:
        watch = await _watch(server)
        lines = b"".join(
            json.dumps({"type": "ADDED", "object": _put_pod(server, name)}).encode() + b"\n" for name in ("web", "api")
        )
        watch.send_bytes(lines[:17])
        watch.send_bytes(lines[17:-3])
        watch.send_bytes(lines[-3:])
        await eventually(lambda: len(reflector.store) == 2, "both events")


async def test_a_burst_of_events_lets_the_event_loop_turn(api: Api, server: ScriptedServer) -> None:
    """A tenant's thousand objects arrive in one piece, and whoever asks for a token meanwhile waits for a few."""
    line = json.dumps({"type": "ADDED", "object": pod("p0", resourceVersion="7")}).encode() + b"\n"
    async with following(api, Watching(turn_bytes=2 * len(line))) as reflector, counting_turns() as turns:
        watch = await _watch(server)
        changes_at: list[int] = []
        reflector.store.subscribe(lambda _: changes_at.append(turns[0]))
        watch.send_bytes(b"".join(line.replace(b'"p0"', b'"p%d"' % number) for number in range(100)))
        await eventually(lambda: len(changes_at) == 100, "all events")
    assert max(map(changes_at.count, changes_at)) <= 3


async def test_a_long_list_lets_the_event_loop_turn(api: Api, server: ScriptedServer) -> None:
    """A reflector that lists everything lets other tasks run in between."""
    for number in range(100):
        _put_pod(server, f"p{number}", annotations={"x": "x" * (TURN_BYTES // 2)})
    reads_at: list[int] = []
    async with counting_turns() as turns:
        original = PODS.read

        def read(raw: Raw) -> StoredObject[Pod]:
            reads_at.append(turns[0])
            return original(raw)

        await api.list(replace(PODS, read=read))
    assert len(reads_at) == 100
    assert max(map(reads_at.count, reads_at)) <= 3


@asynccontextmanager
async def counting_turns() -> AsyncIterator[list[int]]:
    """Count the turns of the event loop: a list of one number, which grows."""
    turns = [0]

    async def count() -> None:
        while True:
            turns[0] += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(count())
    try:
        yield turns
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
