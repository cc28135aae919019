"""Who gets which token, when it has to be waited for, and what is kept: NMI on real sockets against a stand-in IMDS."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace

import pytest

import make
from daemons.nmi.harness import ADDRESS, TARGET, Client, Serving, pod, serving
from daemons.nmi.imds import NOT_FOUND, Reply, StandInImds
from podidentity.core.identities import AssignedState, AzurePodIdentityException, ObjectKey
from podidentity.core.imds import TokenRequest
from podidentity.core.matching import Match
from podidentity.errors import UnreachableError
from podidentity.nmi.app import Pending
from podidentity.nmi.ports import MOVED_SECONDS, Peer
from podidentity.nmi.settings import Settings
from podidentity.serving.metrics import render

WAITING = "aadpodidentity_nmi_waiting_requests"


def run(test: Callable[[Serving], object], settings: Settings | None = None, imds: StandInImds | None = None) -> None:
    """Run one test against a fresh NMI."""

    async def act() -> None:
        async with serving(settings, imds=imds) as nmi:
            await test(nmi)  # type: ignore[misc]  # every test here is a coroutine

    asyncio.run(act())


async def until(holds: Callable[[], object]) -> None:
    """Let the loop turn until `holds`; the harness ends a test that takes too long."""
    while not holds():  # noqa: ASYNC110  # the condition is a count, nobody sets an event for it
        await asyncio.sleep(0)


def count(nmi: Serving, sample: str) -> float:
    """Read one sample of the metrics."""
    lines = render(nmi.registry).decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(sample))


def test_a_pod_gets_the_token_of_its_identity_by_resource_id() -> None:
    """A type 0 identity is asked by resource ID: a neighbour's client ID beside it yields nothing."""

    async def test(nmi: Serving) -> None:
        nmi.cluster.add(pod(), make.identity("reader", client_id="client-of-somebody-else"))
        answer = await nmi.ask()
        assert answer.status == 200
        assert answer.token == "token of reader for https://vault.azure.net no 1"
        assert nmi.imds.asked[0].query["msi_res_id"] == make.resource_id("reader")
        assert "client_id" not in nmi.imds.asked[0].query
        assert nmi.imds.asked[0].headers["metadata"] == "true"

    run(test)


def test_an_identity_that_comes_before_the_wait_has_begun_is_not_missed() -> None:
    """The wait is a task, which begins a moment after the request was looked at; the watch may tell in that moment."""

    async def test(nmi: Serving) -> None:
        asking = pod()
        nmi.cluster.add(asking)
        app, asked = nmi.listener.app, TokenRequest("https://vault.azure.net")
        pending = app.answer(asked, Peer(ADDRESS))
        assert isinstance(pending, Pending)
        nmi.cluster.assign(asking, make.identity("reader"))
        before = nmi.clock.steady()
        answer = await app.wait(pending)
        assert answer.status == 200
        assert nmi.clock.steady() == before

    run(test)


def test_the_answer_has_the_seven_fields_as_texts() -> None:
    """Go's SDK needs texts, Python's needs expires_in, Node's needs expires_on."""

    async def test(nmi: Serving) -> None:
        nmi.cluster.add(pod(), make.identity())
        answer = await nmi.ask()
        assert answer.headers["content-type"] == "application/json"
        assert set(answer.json) == {
            "access_token", "refresh_token", "expires_in", "expires_on", "not_before", "resource", "token_type",
        }  # fmt: skip
        assert {type(value) for value in answer.json.values()} == {str}

    run(test)


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("client_id=client-of-two", "two"),
        ("client_id=CLIENT-OF-TWO", "two"),
        ("mi_res_id=" + make.resource_id("two"), "two"),
        ("msi_res_id=" + make.resource_id("two").upper(), "two"),
    ],
)
def test_a_pod_with_two_identities_gets_the_one_it_names(selector: str, expected: str) -> None:
    """IDs compare without case; without one the first binding wins."""

    async def test(nmi: Serving) -> None:
        nmi.cluster.add(pod(), make.identity("one"), make.identity("two"))
        assert (await nmi.ask(f"{TARGET}&{selector}")).token.startswith(f"token of {expected} ")
        assert (await nmi.ask()).token.startswith("token of one ")

    run(test)


def test_a_pod_without_the_label_is_refused_at_once() -> None:
    """IMDS's own words, and IMDS is not asked."""

    async def test(nmi: Serving) -> None:
        nmi.cluster.add(pod(selector=""), make.identity())
        answer = await nmi.ask()
        assert (answer.status, answer.json) == (400, NOT_FOUND)
        assert nmi.imds.asked == []

    run(test)


def test_one_call_to_imds_serves_a_thousand_first_requests() -> None:
    """Single flight: whoever asks meanwhile waits for the same call."""

    async def test(nmi: Serving) -> None:
        nmi.cluster.add(pod(), make.identity())
        nmi.imds.held = asyncio.Event()
        clients = [await nmi.connect() for _ in range(200)]
        heads = f"GET {TARGET} HTTP/1.1\r\nHost: x\r\nMetadata: true\r\n\r\n".encode() * 5
        for client in clients:
            client.writer.write(heads)
        await until(lambda: len(nmi.imds.asked) == 1)
        nmi.imds.held.set()
        answers = [await client.read() for client in clients for _ in range(5)]
        assert {answer.status for answer in answers} == {200}
        assert len(nmi.imds.asked) == 1

    run(test)


def test_a_token_is_refreshed_ahead_and_served_meanwhile() -> None:
    """At half its life a long token is fetched anew; the old one is served until the new one is here."""

    async def test(nmi: Serving) -> None:
        nmi.cluster.add(pod(), make.identity())
        first = (await nmi.ask()).token
        nmi.clock.pass_time(86400 * 0.39)
        assert (await nmi.ask()).token == first
        assert len(nmi.imds.asked) == 1
        nmi.clock.pass_time(86400 * 0.12)
        assert (await nmi.ask()).token == first
        await until(lambda: nmi.imds.issued == 2)
        client = await nmi.connect()
        while (await client.ask()).token == first:
            pass
        assert len(nmi.imds.asked) == 2

    run(test)


def test_expires_in_counts_down() -> None:
    """azure-identity trusts expires_in over expires_on: it must be counted at each answer."""

    async def test(nmi: Serving) -> None:
        nmi.cluster.add(pod(), make.identity())
        before = int((await nmi.ask()).json["expires_in"])
        nmi.clock.pass_time(100)
        assert int((await nmi.ask()).json["expires_in"]) == before - 100

    run(test)


@pytest.mark.parametrize("jump_seconds", [-10 * 86400, 10 * 86400])
def test_a_jump_of_the_wall_clock_never_serves_an_expired_token(jump_seconds: int) -> None:
    """Set back or forward: a token that has really expired is never given out."""

    async def test(nmi: Serving) -> None:
        nmi.cluster.add(pod(), make.identity())
        first = (await nmi.ask()).token
        nmi.clock.set_wall(jump_seconds)
        nmi.clock.pass_time(86400)
        assert (await nmi.ask()).token != first

    run(test)


def test_a_valid_token_outlives_a_failing_source() -> None:
    """While IMDS is away, what is still valid is served."""

    async def test(nmi: Serving) -> None:
        nmi.cluster.add(pod(), make.identity())
        first = (await nmi.ask()).token
        nmi.clock.pass_time(86400 * 0.6)
        nmi.imds.script.extend([Reply(500)] * 50)
        for _ in range(20):
            assert (await nmi.ask()).token == first
        await until(lambda: len(nmi.imds.asked) >= 5)
        assert (await nmi.ask()).token == first

    run(test)


def test_a_broken_identity_cannot_flood_imds() -> None:
    """A refusal is remembered for seconds, and its text is passed on."""

    async def test(nmi: Serving) -> None:
        nmi.cluster.add(pod(), make.identity())
        nmi.imds.script.extend([Reply(400, json.dumps(NOT_FOUND).encode())] * 2)
        for _ in range(20):
            answer = await nmi.ask()
            assert (answer.status, answer.json["error_description"]) == (403, "Identity not found")
        assert len(nmi.imds.asked) == 1
        nmi.clock.pass_time(4)
        assert (await nmi.ask()).status == 403
        assert len(nmi.imds.asked) == 2

    run(test)


@pytest.mark.parametrize(
    ("replies", "status", "asked"),
    [
        ([Reply(429, headers="Retry-After: 2\r\n")], 200, 2),
        ([Reply(410)] * 6, 200, 7),
        ([Reply(500), Reply(None)], 200, 3),
        ([Reply(500)] * 4, 503, 4),
        ([Reply(200, b"garbage")] * 4, 503, 4),
        ([Reply(200, b'{"access_token":"t","expires_on":"soon"}')] * 4, 503, 4),
        ([Reply(200, b'{"access_token":"' + b"t" * (1 << 19) + b'","expires_in":"9"}')] * 4, 503, 4),
        ([Reply(200, b'{"a":' * 100_000)] * 4, 503, 4),
        ([Reply(403, b'{"error":"unreachable"}')], 403, 1),
    ],
    ids=["429", "410", "500-reset", "500-for-good", "garbage", "odd-token", "huge", "deep", "403"],
)
def test_imds_failures(replies: list[Reply], status: int, asked: int) -> None:
    """What may pass is tried again as IMDS asks; what will not is told at once."""

    async def test(nmi: Serving) -> None:
        nmi.cluster.add(pod(), make.identity())
        nmi.imds.script.extend(replies)
        assert (await nmi.ask()).status == status
        assert len(nmi.imds.asked) == asked

    run(test)


def test_retry_after_of_imds_is_obeyed() -> None:
    """429 with Retry-After: not before that."""

    async def test(nmi: Serving) -> None:
        nmi.cluster.add(pod(), make.identity())
        nmi.imds.script.append(Reply(429, headers="Retry-After: 7\r\n"))
        assert (await nmi.ask()).status == 200
        assert 7.0 in nmi.clock.slept

    run(test)


@pytest.mark.parametrize("wished", ["nan", "inf", "1e999", "-1", "\u00b2", "1_0", "soon"])
def test_a_retry_after_that_is_no_number_is_none(wished: str) -> None:
    """Not a number is neither over nor under any limit: with "nan" the failure would be told for ever."""

    async def test(nmi: Serving) -> None:
        nmi.cluster.add(pod(), make.identity())
        nmi.imds.script.append(Reply(400, json.dumps(NOT_FOUND).encode(), f"Retry-After: {wished}\r\n"))
        assert (await nmi.ask()).status == 403
        nmi.clock.pass_time(4)
        assert (await nmi.ask()).status == 200

    run(test)


def test_imds_is_asked_at_most_five_times_at_once_and_twenty_times_a_second() -> None:
    """IMDS's own limits for one machine."""

    async def test(nmi: Serving) -> None:
        nmi.cluster.add(pod(), make.identity())
        nmi.imds.held = asyncio.Event()
        clients = [await nmi.connect() for _ in range(30)]
        for number, client in enumerate(clients):
            target = TARGET.replace("vault", f"vault{number}")
            client.writer.write(f"GET {target} HTTP/1.1\r\nHost: x\r\nMetadata: true\r\n\r\n".encode())
        await until(lambda: nmi.imds.at_once == 5)
        began = nmi.clock.steady()
        nmi.imds.held.set()
        for client in clients:
            assert (await client.read()).status == 200
        assert nmi.imds.most_at_once == 5
        assert nmi.clock.steady() - began >= 24 / 20

    run(test)


def test_without_the_cache_each_request_is_a_call() -> None:
    """--token-cache=false restores upstream's behaviour."""

    async def test(nmi: Serving) -> None:
        nmi.cluster.add(pod(), make.identity())
        tokens = {(await nmi.ask()).token for _ in range(3)}
        assert len(tokens) == len(nmi.imds.asked) == 3

    run(test, Settings("n1", token_cache=False))


def test_a_revoked_binding_stops_tokens_that_are_cached() -> None:
    """Access is looked up on every request, before the cache is asked; and nothing is waited for."""

    async def test(nmi: Serving) -> None:
        nmi.cluster.add(pod(), make.identity())
        client = await nmi.connect()
        assert (await client.ask()).status == 200
        nmi.cluster.assigned.clear()
        nmi.cluster.changed()
        answer = await client.ask()
        assert (answer.status, answer.json) == (400, NOT_FOUND)

    run(test)


def test_access_is_checked_again_after_the_token_was_waited_for() -> None:
    """A binding that goes while IMDS is slow: the token that arrives is given to nobody."""

    async def test(nmi: Serving) -> None:
        nmi.cluster.add(pod(), make.identity())
        nmi.imds.held = asyncio.Event()
        client = await nmi.connect()
        asking = asyncio.create_task(client.ask())
        await until(lambda: nmi.imds.asked)
        nmi.cluster.assigned.clear()
        nmi.cluster.exceptions.clear()
        nmi.cluster.changed()
        nmi.imds.held.set()
        nmi.cluster.add(replace(pod(), uid="other", key=ObjectKey("default", "other")))
        assert (await asking).status == 503

    run(test)


async def waiting_client(nmi: Serving, target: str = TARGET) -> "tuple[Client, asyncio.Task[object]]":
    """Open a connection, ask, and return once the request waits for an identity."""
    client = await nmi.connect()
    asking: asyncio.Task[object] = asyncio.create_task(client.ask(target))
    await until(lambda: count(nmi, WAITING) == 1)
    return client, asking


def test_a_request_that_waits_is_woken_by_the_watch() -> None:
    """Created, then Assigned: the answer comes with the second change, without any polling."""

    async def test(nmi: Serving) -> None:
        nmi.cluster.add(web := pod())
        _, asking = await waiting_client(nmi)
        nmi.cluster.assign(web, make.identity(), AssignedState.CREATED)
        await asyncio.sleep(0)
        assert not asking.done()
        nmi.cluster.assign(web, make.identity())
        answer = await asking
        assert getattr(answer, "status", 0) == 200

    run(test)


def test_a_wait_ends_when_the_client_hangs_up() -> None:
    """Nobody waits for a client that is gone."""

    async def test(nmi: Serving) -> None:
        nmi.cluster.add(pod())
        client, asking = await waiting_client(nmi)
        asking.cancel()
        client.hang_up()
        await until(lambda: count(nmi, WAITING) == 0)
        assert not nmi.listener.connections

    run(test)


@pytest.mark.parametrize(("header", "status"), [(False, 404), (True, 503)])
def test_a_wait_in_vain_ends_at_upstreams_deadline(*, header: bool, status: int) -> None:
    """404, or with --set-retry-after-header 503 and Retry-After: 20."""

    async def test(nmi: Serving) -> None:
        nmi.cluster.add(pod())
        answer = await nmi.ask()
        assert answer.status == status
        assert answer.headers.get("retry-after") == ("20" if header else None)

    run(test, Settings("n1", wait_created_seconds=0.05, retry_after_header=header))


def test_an_identity_that_is_created_may_take_longer() -> None:
    """The deadline for Assigned is counted on top of the one for Created."""

    async def test(nmi: Serving) -> None:
        nmi.cluster.add(web := pod(), make.identity(), state=AssignedState.CREATED)
        _, asking = await waiting_client(nmi)
        nmi.clock.pass_time(50)
        nmi.cluster.changed()
        await asyncio.sleep(0)
        assert not asking.done()
        nmi.cluster.assign(web, make.identity())
        answer = await asking
        assert getattr(answer, "status", 0) == 200

    run(test, Settings("n1", wait_created_seconds=10, wait_assigned_seconds=60))


def test_an_unknown_address_is_looked_up_once_and_refused() -> None:
    """One direct list for all who ask within a second; 404 when nobody has the address."""

    async def test(nmi: Serving) -> None:
        clients = [await nmi.connect() for _ in range(10)]
        assert {(await client.ask()).status for client in clients} == {404}
        assert nmi.cluster.looks == 1

    run(test)


def test_a_pod_that_the_watch_does_not_know_yet_is_found_by_a_look() -> None:
    """A pod asks before the watch tells of it: the API server itself knows."""

    async def test(nmi: Serving) -> None:
        nmi.cluster.api = [web := pod()]
        nmi.cluster.assign(web, make.identity())
        assert (await nmi.ask()).status == 200
        assert nmi.cluster.looks >= 1

    run(test)


def test_a_pod_that_not_even_the_api_server_knows_yet_is_waited_for() -> None:
    """A pod asks before its kubelet has told of its address: its first request is answered once the watch tells."""

    async def test(nmi: Serving) -> None:
        _, asking = await waiting_client(nmi)
        nmi.cluster.add(pod(), make.identity())
        answer = await asking
        assert getattr(answer, "status", 0) == 200

    run(test, Settings("n1"))


def test_an_address_that_becomes_known_during_the_look_is_not_missed() -> None:
    """The API server said nobody, and meanwhile the watch told of the pod: nobody waits for what has happened."""

    async def test(nmi: Serving) -> None:
        nmi.cluster.api = []
        asking = asyncio.create_task(nmi.ask())
        await until(lambda: nmi.cluster.looks == 1)
        nmi.cluster.add(pod(), make.identity())
        assert (await asking).status == 200

    run(test, Settings("n1"))


def test_nobody_waits_long_for_an_address_of_no_pod() -> None:
    """404 when the time is up."""

    async def test(nmi: Serving) -> None:
        assert (await nmi.ask()).status == 404

    run(test, Settings("n1", wait_known_seconds=0.05))


def test_two_pods_at_one_address_get_nothing() -> None:
    """When it cannot be told who asks, nobody is answered."""

    async def test(nmi: Serving) -> None:
        nmi.cluster.add(pod("one"), make.identity())
        nmi.cluster.add(pod("two"), make.identity())
        answer = await nmi.ask()
        assert answer.status == 503
        assert "both claim" in answer.json["error_description"]
        assert nmi.imds.asked == []

    run(test)


@pytest.mark.parametrize("change", [{"phase": "Succeeded"}, {"host_network": True}], ids=["finished", "host-network"])
def test_pods_that_do_not_own_their_address_are_not_matched(change: dict[str, object]) -> None:
    """A finished pod keeps its address in its status; a host-network pod has its node's."""

    async def test(nmi: Serving) -> None:
        nmi.cluster.add(replace(pod(), **change), make.identity())  # type: ignore[arg-type]
        nmi.cluster.api = []
        assert (await nmi.ask()).status == 404

    run(test)


def test_a_silent_watch_is_not_trusted() -> None:
    """After two minutes without a sign of life the API server itself is asked; when it is away, nobody is answered."""

    async def test(nmi: Serving) -> None:
        nmi.cluster.add(pod(), make.identity())
        assert (await nmi.ask()).status == 200
        nmi.cluster.silent_since = nmi.clock.steady()
        nmi.clock.pass_time(121)
        assert (await nmi.ask()).status == 200
        assert nmi.cluster.looks == 1
        nmi.clock.pass_time(2)
        nmi.cluster.api = UnreachableError("no answer")
        answer = await nmi.ask()
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        nmi.clock.pass_time(2)
        nmi.cluster.api = []
        assert (await nmi.ask()).status == 404

    run(test)


def test_nothing_is_answered_before_the_first_list() -> None:
    """503 with Retry-After: SDKs come back."""

    async def test(nmi: Serving) -> None:
        nmi.cluster.add(pod(), make.identity())
        nmi.cluster.synced = False
        answer = await nmi.ask()
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")

    run(test)


def test_a_reused_address_on_another_link_waits_for_the_api() -> None:
    """The address now comes from another place while the API still names the old pod: 503, never its token."""

    async def test(nmi: Serving) -> None:
        nmi.cluster.add(old := pod("old"), make.identity())
        nmi.link = (7, b"\x02\x00\x00\x00\x00\x01")
        assert (await nmi.ask()).status == 200
        nmi.link = (8, b"\x02\x00\x00\x00\x00\x02")
        assert (await nmi.ask()).status == 503
        nmi.cluster.remove(old)
        nmi.cluster.add(pod("new"), make.identity("writer"))
        assert (await nmi.ask()).token.startswith("token of writer ")

    run(test)


def test_a_look_that_finds_another_pod_serves_that_one() -> None:
    """The watch is behind, the API is not: the new pod gets its own token on its first request."""

    async def test(nmi: Serving) -> None:
        nmi.cluster.add(pod("old"), make.identity())
        nmi.link = (7, b"\x02\x00\x00\x00\x00\x01")
        assert (await nmi.ask()).status == 200
        nmi.link = (8, b"\x02\x00\x00\x00\x00\x02")
        nmi.cluster.api = [new := pod("new", selector="writer")]
        nmi.cluster.assign(new, make.identity("writer"))
        assert (await nmi.ask()).token.startswith("token of writer ")

    run(test)


def test_a_look_from_before_a_pod_went_is_not_believed() -> None:
    """What the API server said a moment ago, or says late, does not undo what the watch has told since."""

    async def test(nmi: Serving) -> None:
        old = pod("old")
        nmi.cluster.add(old, make.identity())
        nmi.link = (7, b"")
        assert (await nmi.ask()).status == 200
        nmi.cluster.api = [old]
        nmi.link = (8, b"")
        assert (await nmi.ask()).status == 503
        nmi.cluster.remove(old)
        assert (await nmi.ask()).status == 404
        nmi.clock.pass_time(10)
        assert (await nmi.ask()).status == 404
        assert nmi.cluster.looks == 2

    run(test)


def test_an_interface_known_beforehand_is_the_only_one() -> None:
    """A pod that never asked is bound to its interface all the same: the next one at its address gets nothing."""

    async def test(nmi: Serving) -> None:
        nmi.cluster.add(pod("old"), make.identity())
        nmi.finding.expect("uid-of-old", 7)
        nmi.link = (8, b"")
        answer = await nmi.ask()
        assert (answer.status, "has moved" in answer.json["error_description"]) == (503, True)
        nmi.link = (7, b"")
        assert (await nmi.ask()).status == 200

    run(test)


def test_a_link_that_the_kernel_lost_binds_nobody_and_proves_nothing() -> None:
    """Half-open connections of one pod must not lock others out for ever, nor let anybody in who may be another."""

    async def test(nmi: Serving) -> None:
        nmi.cluster.add(pod("first"), make.identity())
        nmi.link = (7, None)
        answer = await nmi.ask()
        assert (answer.status, "cannot be told" in answer.json["error_description"]) == (503, True)
        nmi.link = (7, b"\x02\x00\x00\x00\x00\x01")
        assert (await nmi.ask()).status == 200
        nmi.link = (7, None)
        assert (await nmi.ask()).status == 503
        assert nmi.cluster.looks == 0

    run(test)


def test_a_lost_link_is_no_loss_where_the_way_in_is_proven() -> None:
    """A route of its own, or a port that alone may bring its address, is enough; another interface is not."""

    async def test(nmi: Serving) -> None:
        nmi.cluster.add(pod("first"), make.identity())
        nmi.finding.held = {"uid-of-first"}.__contains__
        nmi.link = (7, None)
        assert (await nmi.ask()).status == 200
        nmi.finding.held = set[str]().__contains__
        assert (await nmi.ask()).status == 503
        nmi.finding.expect("uid-of-first", 7)
        assert (await nmi.ask()).status == 200
        nmi.link = (8, None)
        assert (await nmi.ask()).status == 503

    run(test)


def test_a_pod_whose_sandbox_was_made_anew_is_known_again() -> None:
    """Same pod, same address, another interface: after a minute there, when the API server says that it lives."""

    async def test(nmi: Serving) -> None:
        nmi.cluster.add(web := pod(), make.identity())
        nmi.finding.expect(web.uid, 7)
        nmi.link = (7, b"\x02\x00\x00\x00\x00\x01")
        assert (await nmi.ask()).status == 200
        nmi.link = (8, b"\x02\x00\x00\x00\x00\x02")
        nmi.clock.pass_time(MOVED_SECONDS)
        assert (await nmi.ask()).status == 503
        nmi.finding.expect(web.uid, 8)
        nmi.clock.pass_time(MOVED_SECONDS - 1)
        assert (await nmi.ask()).status == 503
        nmi.finding.expect(web.uid, 8)
        nmi.clock.pass_time(2)
        assert (await nmi.ask()).status == 200
        assert (await nmi.ask()).status == 200
        nmi.link = (7, b"\x02\x00\x00\x00\x00\x01")
        assert (await nmi.ask()).status == 503

    run(test)


@pytest.mark.parametrize(
    "why", ["ending", "another interface", "the route changes", "nobody says so", "only the watch"]
)
def test_a_pod_that_moved_is_not_believed_before_it_is_sure(why: str) -> None:
    """Deleted, somewhere else than its route, on its way, unknown to the API server, or known from old news alone."""

    async def test(nmi: Serving) -> None:
        nmi.cluster.add(web := pod(), make.identity())
        nmi.finding.expect(web.uid, 7)
        nmi.link = (7, b"")
        assert (await nmi.ask()).status == 200
        nmi.finding.expect(web.uid, 8)
        nmi.link = (9 if why == "another interface" else 8, b"")
        nmi.clock.pass_time(MOVED_SECONDS + 1)
        if why == "ending":
            nmi.cluster.api = [replace(web, ending=True)]
        elif why == "the route changes":
            nmi.finding.expect(web.uid, 9)
            nmi.finding.expect(web.uid, 8)
        elif why == "nobody says so":
            nmi.cluster.api = UnreachableError("no answer")
        elif why == "only the watch":
            nmi.cluster.api = []
        assert (await nmi.ask()).status == 503

    run(test)


def test_a_connection_belongs_to_its_first_pod() -> None:
    """A kept-alive connection whose address went to another pod is not that pod's."""

    async def test(nmi: Serving) -> None:
        nmi.cluster.add(old := pod("old"), make.identity())
        client = await nmi.connect()
        assert (await client.ask()).status == 200
        nmi.cluster.pods.remove(old)
        nmi.cluster.add(pod("new"), make.identity("writer"))
        answer = await client.ask()
        assert (answer.status, answer.headers["connection"]) == (503, "close")
        assert await client.ended()

    run(test)


def test_connections_are_reset_with_their_pod() -> None:
    """The watch tells of the pod's end: its connections go at once, waiting ones too."""

    async def test(nmi: Serving) -> None:
        nmi.cluster.add(web := pod(), make.identity())
        client = await nmi.connect()
        assert (await client.ask()).status == 200
        nmi.cluster.remove(web)
        assert await client.ended()

    run(test)


def test_a_recreated_pod_does_not_inherit() -> None:
    """`web-0` on another node, or with another label: the old object of its name does not count."""

    async def test(nmi: Serving) -> None:
        nmi.cluster.add(web := pod("web-0"), make.identity())
        assert (await nmi.ask()).status == 200
        nmi.cluster.remove(web)
        nmi.cluster.pods.append(pod("web-0", selector="other", uid="second"))
        assert (await nmi.ask()).status == 404
        assert len(nmi.imds.asked) == 1

    run(test, Settings("n1", wait_created_seconds=0.05))


@pytest.mark.parametrize("excepted", [True, False])
def test_excepted_pods_are_answered_as_imds_would(*, excepted: bool) -> None:
    """An exception's pods and MIC itself get what they ask of IMDS: the machine's identity, or the one they name."""

    async def test(nmi: Serving) -> None:
        web = replace(pod(selector=""), labels={"app": "Tool"}) if excepted else replace(make.mic_pod(), ips=(ADDRESS,))
        nmi.cluster.pods.append(web)
        nmi.cluster.exceptions.append(AzurePodIdentityException(ObjectKey("default", "e"), {"app": "tool"}))
        assert (await nmi.ask()).token.startswith("token of the-machine ")
        assert (await nmi.ask(f"{TARGET}&client_id=abc")).token.startswith("token of abc ")

    run(test)


def test_managed_mode_answers_from_bindings() -> None:
    """No assigned identities: a binding of the pod's namespace is enough; without one there is nothing to wait for."""

    async def test(nmi: Serving) -> None:
        nmi.cluster.pods.append(web := pod())
        assert (await nmi.ask()).status == 404
        nmi.cluster.matches.append(Match(web, make.binding(), make.identity()))
        nmi.cluster.changed()
        assert (await nmi.ask()).token.startswith("token of reader ")

    run(test, Settings("n1", managed_mode=True, force_namespaced=True))
