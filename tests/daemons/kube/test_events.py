"""Events as the API server receives them: counted, bounded, and never in the caller's way."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from clocks import JumpingClock
from daemons.kube.scripted import Reply, ScriptedServer
from podidentity.core.model.identities import ObjectKey
from podidentity.kube.api import Api
from podidentity.kube.events import BURST, HOLD_OFF_SECONDS, QUEUE_LENGTH, Recorder, Subject
from podidentity.kube.resources import BINDINGS, NODES
from waiting import eventually

BINDING = Subject.of_kind(BINDINGS, ObjectKey("team", "reader"), "uid-1")
PREFIX = "/api/v1/namespaces/team/events/"


@pytest.fixture
async def recorder(api: Api) -> AsyncIterator[Recorder]:
    """Return a recorder that runs."""
    new_recorder = Recorder(api, "mic-0", wall_clock=lambda: 1_700_000_000.0 + api.clock.steady())
    task = asyncio.create_task(new_recorder.run())
    yield new_recorder
    task.cancel()


def _events(server: ScriptedServer) -> list[dict[str, Any]]:
    return [obj for path, obj in server.objects.items() if "/events/" in path]


async def test_an_event_reads_like_upstreams(recorder: Recorder, server: ScriptedServer) -> None:
    """Alerts and `kubectl describe` find it: component, reason, message and the object are where they always were."""
    recorder.record(BINDING, "Normal", "binding applied", "Binding reader applied on node n1 for pod web")
    await eventually(lambda: _events(server), "the event")
    (event,) = _events(server)
    assert event["source"] == {"component": "aadpodidentity.k8s.io", "host": "mic-0"}
    assert event["involvedObject"] == {
        "apiVersion": "aadpodidentity.k8s.io/v1",
        "kind": "AzureIdentityBinding",
        "namespace": "team",
        "name": "reader",
        "uid": "uid-1",
    }
    assert (event["type"], event["reason"], event["count"]) == ("Normal", "binding applied", 1)
    assert event["firstTimestamp"] == event["lastTimestamp"] == "2023-11-14T22:30:00Z"
    assert event["metadata"]["namespace"] == "team"


async def test_the_same_again_is_counted(recorder: Recorder, server: ScriptedServer, clock: JumpingClock) -> None:
    """A failure that repeats is one event with a count, and its last time moves."""
    recorder.record(BINDING, "Warning", "binding apply error", "no role")
    await eventually(lambda: _events(server), "the event")
    clock.jump(60)
    recorder.record(BINDING, "Warning", "binding apply error", "no role")
    await eventually(lambda: _events(server)[0]["count"] == 2, "the count")
    (event,) = _events(server)
    assert event["firstTimestamp"] == "2023-11-14T22:30:00Z"
    assert event["lastTimestamp"] == "2023-11-14T22:31:00Z"
    recorder.record(BINDING, "Warning", "binding apply error", "another reason")
    await eventually(lambda: len(_events(server)) == 2, "a second event")


async def test_what_comes_while_it_waits_is_written_once(recorder: Recorder, server: ScriptedServer) -> None:
    """A burst costs one request."""
    for _ in range(10):
        recorder.record(BINDING, "Warning", "binding apply error", "no role")
    await eventually(lambda: _events(server), "the event")
    assert _events(server)[0]["count"] == 10
    assert len(server.requests) == 1


async def test_an_expired_event_is_written_anew(recorder: Recorder, server: ScriptedServer) -> None:
    """The API server deletes events after an hour; the same event after that is created anew with a count of one."""
    recorder.record(BINDING, "Normal", "r", "m")
    await eventually(lambda: _events(server), "the event")
    server.objects.clear()
    recorder.record(BINDING, "Normal", "r", "m")
    await eventually(lambda: _events(server), "the event again")
    assert _events(server)[0]["count"] == 1


async def test_an_object_that_talks_too_much_is_silenced(
    recorder: Recorder, server: ScriptedServer, clock: JumpingClock
) -> None:
    """One object cannot fill the cluster with events; it may speak again later, and others are not affected."""
    for number in range(BURST + 10):
        recorder.record(BINDING, "Warning", "r", f"m{number}")
    assert recorder.drop_count == 10
    recorder.record(Subject.of_kind(NODES, ObjectKey("", "n1")), "Normal", "r", "m")
    await eventually(lambda: len(_events(server)) == BURST + 1, "the events")
    assert _events(server)[-1]["metadata"]["namespace"] == "default"
    clock.jump(300)
    recorder.record(BINDING, "Warning", "r", "later")
    assert recorder.drop_count == 10


async def test_another_namespace_cannot_silence_an_object(recorder: Recorder, server: ScriptedServer) -> None:
    """What pods elsewhere bring about is counted for their namespace: the owner's own events still come."""
    for number in range(BURST + 10):
        recorder.record(BINDING, "Warning", "r", f"m{number}", cause="elsewhere")
    assert recorder.drop_count == 10
    recorder.record(BINDING, "Warning", "r", "the owner's own")
    await eventually(lambda: _events(server)[-1:] and _events(server)[-1]["message"] == "the owner's own", "the event")


async def test_a_namespace_that_is_being_deleted_hides_no_missing_right(
    recorder: Recorder, server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Its refusal is no role's: nothing is logged of it, and a real one is still a warning."""
    terminating = Reply.refusal(403, "namespace team is being terminated", causes=["NamespaceTerminating"])
    server.answer_next(terminating)
    recorder.record(BINDING, "Normal", "r", "m")
    await eventually(lambda: len(server.requests) == 1, "the first refusal")
    server.answer_next(Reply.refusal(403, "events is forbidden"))
    recorder.record(Subject.of_kind(BINDINGS, ObjectKey("other", "b")), "Normal", "r", "m")
    await eventually(lambda: "events is forbidden" in caplog.text, "the warning")
    assert "terminated" not in caplog.text
    assert [record.levelname for record in caplog.records] == ["WARNING"]


async def test_a_full_queue_drops_and_never_blocks(api: Api) -> None:
    """While the API server is away, events beyond the queue's size are dropped, and nobody waits to report one."""
    recorder = Recorder(api)
    for number in range(QUEUE_LENGTH + 5):
        recorder.record(Subject.of_kind(BINDINGS, ObjectKey("team", f"b{number}")), "Normal", "r", "m")
    assert recorder.drop_count == 5


async def test_a_role_without_events_is_one_warning(
    recorder: Recorder, server: ScriptedServer, clock: JumpingClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Under upstream's role NMI may not write events: one warning names the right, and the daemon goes on."""
    words = 'events is forbidden: User "nmi" cannot create resource "events"'
    for namespace in ("team", "other"):
        server.answer_next(Reply.refusal(403, words))
        recorder.record(Subject.of_kind(BINDINGS, ObjectKey(namespace, "b")), "Normal", "r", "m")
    await eventually(lambda: len(server.requests) == 2, "both refusals")
    recorder.record(BINDING, "Normal", "r", "held off")
    recorder.record(Subject.of_kind(BINDINGS, ObjectKey("third", "b")), "Normal", "r", "m")
    await eventually(lambda: _events(server), "the namespace that allows it")
    assert len(server.requests) == 3
    assert [record.levelname for record in caplog.records if words in record.getMessage()] == ["WARNING"]
    clock.jump(HOLD_OFF_SECONDS)
    recorder.record(BINDING, "Normal", "r", "allowed by now")
    await eventually(lambda: len(_events(server)) == 2, "the next try")


async def test_a_failed_write_does_not_end_the_recorder(recorder: Recorder, server: ScriptedServer) -> None:
    """An event may be lost; the next one is not."""
    server.answer_next(Reply.refusal(500))
    recorder.record(BINDING, "Normal", "r", "lost")
    recorder.record(BINDING, "Normal", "r", "kept")
    await eventually(lambda: _events(server), "the second event")
    assert json.loads(server.requests[0].body)["message"] == "lost"
    assert _events(server)[0]["message"] == "kept"


async def test_names_and_messages_stay_within_the_apis_limits(recorder: Recorder, server: ScriptedServer) -> None:
    """Assigned identities have the longest names: an event about one must still have a valid name."""
    recorder.record(Subject.of_kind(BINDINGS, ObjectKey("team", "a" * 253)), "Normal", "r", "m" * 5000)
    await eventually(lambda: _events(server), "the event")
    (event,) = _events(server)
    assert len(event["metadata"]["name"]) <= 253
    assert len(event["message"]) == 1024
