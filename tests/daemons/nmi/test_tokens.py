"""Who gets which token, when it has to be waited for, and what is kept: NMI on real sockets against a stand-in IMDS."""

import asyncio
import json
from dataclasses import replace

import pytest

import make
from daemons.nmi.harness import ADDRESS, TARGET, Answer, Client, Serving, pod, serving
from daemons.nmi.imds import NOT_FOUND, Reply
from podidentity.core.model.identities import AssignedState, AzurePodIdentityException, ObjectKey
from podidentity.core.model.matching import Match
from podidentity.core.tokens.imds import TokenRequest
from podidentity.errors import UnreachableError
from podidentity.nmi.app import Pending
from podidentity.nmi.ports import MOVED_SECONDS, Peer
from podidentity.nmi.settings import Settings
from podidentity.serving.metrics import render
from waiting import eventually

WAITING = "aadpodidentity_nmi_waiting_requests"


def count(nmi: Serving, sample: str) -> float:
    """Read one sample of the metrics."""
    lines = render(nmi.registry).decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(sample))


async def test_a_pod_gets_the_token_of_its_identity_by_resource_id() -> None:
    """IMDS is asked for a type 0 identity by resource ID alone, whatever client ID its object names."""
    async with serving() as nmi:
        nmi.cluster.add(pod(), make.identity("reader", client_id="client-of-somebody-else"))
        answer = await nmi.ask()
        assert answer.status == 200
        assert answer.token == "token of reader for https://vault.azure.net no 1"
        assert nmi.imds.requests[0].query["msi_res_id"] == make.resource_id("reader")
        assert "client_id" not in nmi.imds.requests[0].query
        assert nmi.imds.requests[0].headers["metadata"] == "true"


async def test_an_identity_that_comes_before_the_wait_has_begun_is_not_missed() -> None:
    """An identity that is assigned between a request's first look and its wait is found at once."""
    async with serving() as nmi:
        asking = pod()
        nmi.cluster.add(asking)
        app, request = nmi.listener.app, TokenRequest("https://vault.azure.net")
        pending = app.answer(request, Peer(ADDRESS))
        assert isinstance(pending, Pending)
        nmi.cluster.assign(asking, make.identity("reader"))
        start = nmi.clock.steady()
        answer = await app.wait(pending)
        assert answer.status == 200
        assert nmi.clock.steady() == start


async def test_the_answer_has_the_seven_fields_as_texts() -> None:
    """All fields are strings, which Go's SDK needs; Python's SDK reads expires_in and Node's expires_on."""
    async with serving() as nmi:
        nmi.cluster.add(pod(), make.identity())
        answer = await nmi.ask()
        assert answer.headers["content-type"] == "application/json"
        assert set(answer.json) == {
            "access_token", "refresh_token", "expires_in", "expires_on", "not_before", "resource", "token_type",
        }  # fmt: skip
        assert {type(value) for value in answer.json.values()} == {str}


@pytest.mark.parametrize(
    ("selector", "identity"),
    [
        ("client_id=client-of-two", "two"),
        ("client_id=CLIENT-OF-TWO", "two"),
        ("mi_res_id=" + make.resource_id("two"), "two"),
        ("msi_res_id=" + make.resource_id("two").upper(), "two"),
    ],
)
async def test_a_pod_with_two_identities_gets_the_one_it_names(selector: str, identity: str) -> None:
    """The pod may name either by its IDs, which compare without case; if it names none, the first binding wins."""
    async with serving() as nmi:
        nmi.cluster.add(pod(), make.identity("one"), make.identity("two"))
        assert (await nmi.ask(f"{TARGET}&{selector}")).token.startswith(f"token of {identity} ")
        assert (await nmi.ask()).token.startswith("token of one ")


async def test_a_pod_without_the_label_is_refused_at_once() -> None:
    """A pod without the label gets 400 in IMDS's own words, and IMDS is not asked."""
    async with serving() as nmi:
        nmi.cluster.add(pod(selector=""), make.identity())
        answer = await nmi.ask()
        assert (answer.status, answer.json) == (400, NOT_FOUND)
        assert nmi.imds.requests == []


async def test_one_call_to_imds_serves_a_thousand_first_requests() -> None:
    """Requests for a token that is just being fetched wait for the same call."""
    async with serving() as nmi:
        nmi.cluster.add(pod(), make.identity())
        nmi.imds.gate = asyncio.Event()
        clients = [await nmi.connect() for _ in range(200)]
        heads = f"GET {TARGET} HTTP/1.1\r\nHost: x\r\nMetadata: true\r\n\r\n".encode() * 5
        for client in clients:
            client.writer.write(heads)
        await eventually(lambda: len(nmi.imds.requests) == 1, "IMDS is asked once")
        nmi.imds.gate.set()
        answers = [await client.read() for client in clients for _ in range(5)]
        assert {answer.status for answer in answers} == {200}
        assert len(nmi.imds.requests) == 1


async def test_a_token_is_refreshed_ahead_and_served_meanwhile() -> None:
    """A long token is refreshed at half its life, and the old one is served until the new one has arrived."""
    async with serving() as nmi:
        nmi.cluster.add(pod(), make.identity())
        first = (await nmi.ask()).token
        nmi.clock.jump(86400 * 0.39)
        assert (await nmi.ask()).token == first
        assert len(nmi.imds.requests) == 1
        nmi.clock.jump(86400 * 0.12)
        assert (await nmi.ask()).token == first
        await eventually(lambda: nmi.imds.issued == 2, "IMDS has given a second token")
        client = await nmi.connect()
        while (await client.ask()).token == first:
            pass
        assert len(nmi.imds.requests) == 2


async def test_expires_in_counts_down() -> None:
    """azure-identity trusts expires_in over expires_on, so expires_in is computed anew for each answer."""
    async with serving() as nmi:
        nmi.cluster.add(pod(), make.identity())
        start = int((await nmi.ask()).json["expires_in"])
        nmi.clock.jump(100)
        assert int((await nmi.ask()).json["expires_in"]) == start - 100


@pytest.mark.parametrize("jump_seconds", [-10 * 86400, 10 * 86400])
async def test_a_jump_of_the_wall_clock_never_serves_an_expired_token(jump_seconds: int) -> None:
    """However the wall clock is set, a token that has really expired is not given out."""
    async with serving() as nmi:
        nmi.cluster.add(pod(), make.identity())
        first = (await nmi.ask()).token
        nmi.clock.set_wall(jump_seconds)
        nmi.clock.jump(86400)
        assert (await nmi.ask()).token != first


async def test_a_valid_token_outlives_a_failing_source() -> None:
    """While IMDS fails, a token that is still valid is served."""
    async with serving() as nmi:
        nmi.cluster.add(pod(), make.identity())
        first = (await nmi.ask()).token
        nmi.clock.jump(86400 * 0.6)
        nmi.imds.script.extend([Reply(500)] * 50)
        for _ in range(20):
            assert (await nmi.ask()).token == first
        await eventually(lambda: len(nmi.imds.requests) >= 5, "IMDS is asked again and again")
        assert (await nmi.ask()).token == first


async def test_a_broken_identity_cannot_flood_imds() -> None:
    """A refusal of IMDS is passed on and remembered for some seconds, so that IMDS is not asked each time."""
    async with serving() as nmi:
        nmi.cluster.add(pod(), make.identity())
        nmi.imds.script.extend([Reply(400, json.dumps(NOT_FOUND).encode())] * 2)
        for _ in range(20):
            answer = await nmi.ask()
            assert (answer.status, answer.json["error_description"]) == (403, "Identity not found")
        assert len(nmi.imds.requests) == 1
        nmi.clock.jump(4)
        assert (await nmi.ask()).status == 403
        assert len(nmi.imds.requests) == 2


@pytest.mark.parametrize(
    ("replies", "status", "calls"),
    [
        ([Reply(429, headers="Retry-After: 2\r\n")], 200, 2),
        ([Reply(410)] * 6, 200, 7),
        ([Reply(500), Reply(None)], 200, 3),
        ([Reply(500)] * 4, 503, 4),
        ([Reply(200, b"garbage")] * 4, 503, 4),
        ([Reply(200, b'{"access_token":"t","expires_on":"soon"}')] * 4, 503, 4),
        ([Reply(200, b'{"access_token":null,"expires_in":"3600"}')] * 4, 503, 4),
        ([Reply(200, b'{"access_token":"","expires_in":"3600"}')] * 4, 503, 4),
        ([Reply(200, b'{"access_token":"' + b"t" * (1 << 19) + b'","expires_in":"9"}')] * 4, 503, 4),
        ([Reply(200, b'{"a":' * 100_000)] * 4, 503, 4),
        ([Reply(403, b'{"error":"unreachable"}')], 403, 1),
    ],
    ids=["429", "410", "500-reset", "500-for-good", "garbage", "odd-token", "null", "empty", "huge", "deep", "403"],
)
async def test_imds_failures(replies: list[Reply], status: int, calls: int) -> None:
    """Failures that may pass are tried again as IMDS's own guidance says; refusals are reported at once."""
    async with serving() as nmi:
        nmi.cluster.add(pod(), make.identity())
        nmi.imds.script.extend(replies)
        assert (await nmi.ask()).status == status
        assert len(nmi.imds.requests) == calls


async def test_retry_after_of_imds_is_obeyed() -> None:
    """After a 429 NMI waits for as long as Retry-After says before it asks again."""
    async with serving() as nmi:
        nmi.cluster.add(pod(), make.identity())
        nmi.imds.script.append(Reply(429, headers="Retry-After: 7\r\n"))
        assert (await nmi.ask()).status == 200
        assert 7.0 in nmi.clock.slept


@pytest.mark.parametrize("value", ["nan", "inf", "1e999", "-1", "\u00b2", "1_0", "soon"])
async def test_a_retry_after_that_is_no_number_is_none(value: str) -> None:
    """A Retry-After of "nan" counts as none: it compares false with every limit, so the failure would never end."""
    async with serving() as nmi:
        nmi.cluster.add(pod(), make.identity())
        nmi.imds.script.append(Reply(400, json.dumps(NOT_FOUND).encode(), f"Retry-After: {value}\r\n"))
        assert (await nmi.ask()).status == 403
        nmi.clock.jump(4)
        assert (await nmi.ask()).status == 200


async def test_a_quarter_of_what_imds_answers_is_left_to_the_node() -> None:
    """NMI makes 4 calls at once and 15 a second; IMDS allows a machine 5 and 20, and other programs ask it too."""
    async with serving() as nmi:
        addresses = [f"127.0.1.{number}" for number in range(1, 31)]
        for address in addresses:
            nmi.cluster.add(replace(pod(address, uid=address), ips=(address,)), make.identity())
        nmi.imds.gate = asyncio.Event()
        clients = [await nmi.connect(address) for address in addresses]
        for number, client in enumerate(clients):
            target = TARGET.replace("vault", f"vault{number}")
            client.writer.write(f"GET {target} HTTP/1.1\r\nHost: x\r\nMetadata: true\r\n\r\n".encode())
        await eventually(lambda: nmi.imds.at_once == 4, "IMDS answers four at once")
        start = nmi.clock.steady()
        nmi.imds.gate.set()
        for client in clients:
            assert (await client.read()).status == 200
        assert nmi.imds.most_at_once == 4
        assert nmi.clock.steady() - start >= 25 / 15


async def test_without_the_cache_each_request_is_a_call() -> None:
    """With --token-cache=false each request is a call to IMDS, as it is upstream."""
    async with serving(Settings("n1", token_cache=False)) as nmi:
        nmi.cluster.add(pod(), make.identity())
        tokens = {(await nmi.ask()).token for _ in range(3)}
        assert len(tokens) == len(nmi.imds.requests) == 3


async def test_a_revoked_binding_stops_tokens_that_are_cached() -> None:
    """Access is checked on each request: a pod that lost its identity gets 400 at once, though its token is cached."""
    async with serving() as nmi:
        nmi.cluster.add(pod(), make.identity())
        client = await nmi.connect()
        assert (await client.ask()).status == 200
        nmi.cluster.assigned_identities.clear()
        nmi.cluster.notify()
        answer = await client.ask()
        assert (answer.status, answer.json) == (400, NOT_FOUND)


async def test_access_is_checked_again_after_the_token_was_waited_for() -> None:
    """A pod that loses its identity while IMDS is asked gets 400, and not the token that IMDS then returns."""
    async with serving() as nmi:
        nmi.cluster.add(pod(), make.identity())
        nmi.imds.gate = asyncio.Event()
        client = await nmi.connect()
        asking = asyncio.create_task(client.ask())
        await eventually(lambda: nmi.imds.requests, "IMDS is asked")
        nmi.cluster.assigned_identities.clear()
        nmi.cluster.notify()
        nmi.imds.gate.set()
        answer = await asking
        assert nmi.imds.issued == 1
        assert (answer.status, answer.json) == (400, NOT_FOUND)


async def test_an_address_that_two_pods_have_by_then_gets_no_token() -> None:
    """Whose address it is, is checked again too: when a second pod has it after the wait for IMDS, nobody gets one."""
    async with serving() as nmi:
        nmi.cluster.add(pod(), make.identity())
        nmi.imds.gate = asyncio.Event()
        client = await nmi.connect()
        asking = asyncio.create_task(client.ask())
        await eventually(lambda: nmi.imds.requests, "IMDS is asked")
        nmi.cluster.add(replace(pod(), uid="other", key=ObjectKey("default", "other")), make.identity())
        nmi.imds.gate.set()
        assert (await asking).status == 503


async def waiting_client(nmi: Serving, target: str = TARGET) -> "tuple[Client, asyncio.Task[object]]":
    """Open a connection, ask, and return once the request waits for an identity."""
    client = await nmi.connect()
    asking: asyncio.Task[object] = asyncio.create_task(client.ask(target))
    await eventually(lambda: count(nmi, WAITING) == 1, "the request waits")
    return client, asking


async def test_a_request_that_waits_is_woken_by_the_watch() -> None:
    """A waiting request is answered once its identity is Assigned, and not while it is Created."""
    async with serving() as nmi:
        nmi.cluster.add(web := pod())
        _, asking = await waiting_client(nmi)
        nmi.cluster.assign(web, make.identity(), AssignedState.CREATED)
        await asyncio.sleep(0)
        assert not asking.done()
        nmi.cluster.assign(web, make.identity())
        answer = await asking
        assert getattr(answer, "status", 0) == 200


async def test_a_wait_ends_when_the_client_hangs_up() -> None:
    """A wait ends within three seconds after its client is gone, whose kernel resets what NMI sends."""
    async with serving() as nmi:
        nmi.cluster.add(pod())
        client, asking = await waiting_client(nmi)
        asking.cancel()
        (connection,) = nmi.listener.connections
        client.hang_up()
        await eventually(lambda: connection.half_closed, "NMI knows that the client sends no more")
        nmi.listener.second += 2
        connection.check_time()
        while nmi.listener.connections:
            connection.check_time()
            await asyncio.sleep(0)
        await eventually(lambda: count(nmi, WAITING) == 0, "nobody waits any more")


async def test_a_client_that_ends_its_side_gets_what_it_waited_for() -> None:
    """A client that ends its side while it waits is answered all the same, and then the connection ends."""
    async with serving() as nmi:
        nmi.cluster.add(web := pod())
        client, asking = await waiting_client(nmi)
        (connection,) = nmi.listener.connections
        client.writer.write_eof()
        await eventually(lambda: connection.half_closed, "NMI knows that the client sends no more")
        nmi.cluster.assign(web, make.identity())
        answer = await asking
        assert getattr(answer, "status", 0) == 200
        assert getattr(answer, "headers", {})["connection"] == "close"
        assert await client.has_ended()


@pytest.mark.parametrize(("header", "status"), [(False, 404), (True, 503)])
async def test_a_wait_in_vain_ends_at_upstreams_deadline(*, header: bool, status: int) -> None:
    """When the wait is over the answer is 404, or with --set-retry-after-header 503 and Retry-After: 20."""
    async with serving(Settings("n1", wait_created_seconds=0.05, retry_after_header=header)) as nmi:
        nmi.cluster.add(pod())
        answer = await nmi.ask()
        assert answer.status == status
        assert answer.headers.get("retry-after") == ("20" if header else None)


async def test_an_identity_that_is_created_may_take_longer() -> None:
    """The deadline for Assigned is counted on top of the one for Created."""
    async with serving(Settings("n1", wait_created_seconds=10, wait_assigned_seconds=60)) as nmi:
        nmi.cluster.add(web := pod(), make.identity(), state=AssignedState.CREATED)
        _, asking = await waiting_client(nmi)
        nmi.clock.jump(50)
        nmi.cluster.notify()
        await asyncio.sleep(0)
        assert not asking.done()
        nmi.cluster.assign(web, make.identity())
        answer = await asking
        assert getattr(answer, "status", 0) == 200


async def test_an_unknown_address_is_looked_up_once_and_refused() -> None:
    """Ten requests from an address of no pod cost one list of the API server, and each gets 404."""
    async with serving() as nmi:
        clients = [await nmi.connect() for _ in range(10)]
        assert {(await client.ask()).status for client in clients} == {404}
        assert nmi.cluster.looks == 1


async def test_a_pod_that_the_watch_does_not_know_yet_is_found_by_a_look() -> None:
    """A pod that asks before the watch shows it is found by asking the API server."""
    async with serving() as nmi:
        nmi.cluster.api = [web := pod()]
        nmi.cluster.assign(web, make.identity())
        assert (await nmi.ask()).status == 200
        assert nmi.cluster.looks >= 1


async def test_a_pod_that_not_even_the_api_server_knows_yet_is_waited_for() -> None:
    """A pod whose address the kubelet has not reported yet is answered once the watch shows it."""
    async with serving(Settings("n1")) as nmi:
        _, asking = await waiting_client(nmi)
        nmi.cluster.add(pod(), make.identity())
        answer = await asking
        assert getattr(answer, "status", 0) == 200


async def test_an_address_that_becomes_known_during_the_look_is_not_missed() -> None:
    """A pod that the watch shows while the API server is asked is answered, though the API server's answer lacks it."""
    async with serving(Settings("n1")) as nmi:
        nmi.cluster.api = []
        asking = asyncio.create_task(nmi.ask())
        await eventually(lambda: nmi.cluster.looks == 1, "the API server is asked")
        nmi.cluster.add(pod(), make.identity())
        assert (await asking).status == 200


async def asks_in_time_of_a_test(nmi: Serving) -> "asyncio.Task[Answer]":
    """Let only the test move the event loop's time, with NMI's own; ask, and return once the request waits."""
    loop = asyncio.get_running_loop()
    loop.time = nmi.clock.steady  # type: ignore[method-assign]
    asking = asyncio.create_task(nmi.ask())
    while not count(nmi, WAITING):  # noqa: ASYNC110  # no time passes here but what the test lets pass
        await asyncio.sleep(0)
    return asking


async def pass_time(nmi: Serving, seconds: float) -> None:
    """Let so many seconds pass, and let every task do what is then due."""
    nmi.clock.jump(seconds)
    for _ in range(10):
        await asyncio.sleep(0)


async def test_an_address_that_a_kubelet_reports_at_its_second_try_is_waited_for() -> None:
    """Kubelets try every ten seconds: a pod whose address is reported after 20 s gets its token, not 404."""
    async with serving(Settings("n1")) as nmi:
        asking = await asks_in_time_of_a_test(nmi)
        await pass_time(nmi, 20.5)
        nmi.cluster.add(pod(), make.identity())
        assert (await asking).status == 200


async def test_an_address_of_no_pod_is_refused_after_25_seconds() -> None:
    """A request from an address of no pod waits 25 s for the watch to show one, and is then refused with 404."""
    async with serving(Settings("n1")) as nmi:
        asking = await asks_in_time_of_a_test(nmi)
        await pass_time(nmi, 24.9)
        assert count(nmi, WAITING) == 1
        await pass_time(nmi, 0.2)
        assert count(nmi, WAITING) == 0
        answer = await asking
        assert answer.status == 404
        assert answer.json["error_description"] == f"no pod of this node has the address {ADDRESS}"


async def test_nobody_waits_long_for_an_address_of_no_pod() -> None:
    """A request from an address of no pod is refused with 404 once the wait is over."""
    async with serving(Settings("n1", wait_known_seconds=0.05)) as nmi:
        assert (await nmi.ask()).status == 404


async def test_two_pods_at_one_address_get_nothing() -> None:
    """While two pods have the same address it is not known which of them asks, so neither is answered."""
    async with serving() as nmi:
        nmi.cluster.add(pod("one"), make.identity())
        nmi.cluster.add(pod("two"), make.identity())
        answer = await nmi.ask()
        assert answer.status == 503
        assert "both claim" in answer.json["error_description"]
        assert nmi.imds.requests == []


@pytest.mark.parametrize("change", [{"phase": "Succeeded"}, {"host_network": True}], ids=["finished", "host-network"])
async def test_pods_that_do_not_own_their_address_are_not_matched(change: dict[str, object]) -> None:
    """A finished pod, and a host-network pod, which has its node's address, get no token by their address."""
    async with serving() as nmi:
        nmi.cluster.add(replace(pod(), **change), make.identity())  # type: ignore[arg-type]
        nmi.cluster.api = []
        assert (await nmi.ask()).status == 404


async def test_a_silent_watch_is_not_trusted() -> None:
    """After two minutes without a sign of life the API server itself is asked; while it is away, the answer is 503."""
    async with serving() as nmi:
        nmi.cluster.add(pod(), make.identity())
        assert (await nmi.ask()).status == 200
        nmi.cluster.silent_since = nmi.clock.steady()
        nmi.clock.jump(121)
        assert (await nmi.ask()).status == 200
        assert nmi.cluster.looks == 1
        nmi.clock.jump(2)
        nmi.cluster.api = UnreachableError("no answer")
        answer = await nmi.ask()
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        nmi.clock.jump(2)
        nmi.cluster.api = []
        assert (await nmi.ask()).status == 404


async def test_nothing_is_answered_before_the_first_list() -> None:
    """Before the first lists are complete NMI answers 503 with Retry-After, so that SDKs try again."""
    async with serving() as nmi:
        nmi.cluster.add(pod(), make.identity())
        nmi.cluster.synced = False
        answer = await nmi.ask()
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")


async def test_a_reused_address_on_another_link_waits_for_the_api() -> None:
    """While an address comes in elsewhere and the API server names the old pod, the answer is 503, not a token."""
    async with serving() as nmi:
        nmi.cluster.add(old := pod("old"), make.identity())
        nmi.link = (7, b"\x02\x00\x00\x00\x00\x01")
        assert (await nmi.ask()).status == 200
        nmi.link = (8, b"\x02\x00\x00\x00\x00\x02")
        assert (await nmi.ask()).status == 503
        nmi.cluster.remove(old)
        nmi.cluster.add(pod("new"), make.identity("writer"))
        assert (await nmi.ask()).token.startswith("token of writer ")


async def test_a_look_that_finds_another_pod_serves_that_one() -> None:
    """When the watch is late and the API server is not, the new pod at the address gets its own token at once."""
    async with serving() as nmi:
        nmi.cluster.add(pod("old"), make.identity())
        nmi.link = (7, b"\x02\x00\x00\x00\x00\x01")
        assert (await nmi.ask()).status == 200
        nmi.link = (8, b"\x02\x00\x00\x00\x00\x02")
        nmi.cluster.api = [new := pod("new", selector="writer")]
        nmi.cluster.assign(new, make.identity("writer"))
        assert (await nmi.ask()).token.startswith("token of writer ")


async def test_a_look_from_before_a_pod_went_is_not_believed() -> None:
    """Once the watch has shown that a pod is gone, an older or late answer of the API server does not bring it back."""
    async with serving() as nmi:
        old = pod("old")
        nmi.cluster.add(old, make.identity())
        nmi.link = (7, b"")
        assert (await nmi.ask()).status == 200
        nmi.cluster.api = [old]
        nmi.link = (8, b"")
        assert (await nmi.ask()).status == 503
        nmi.cluster.remove(old)
        assert (await nmi.ask()).status == 404
        nmi.clock.jump(10)
        assert (await nmi.ask()).status == 404
        assert nmi.cluster.looks == 2


async def test_an_interface_known_beforehand_is_the_only_one() -> None:
    """A pod's route binds it to an interface before its first request: from another interface its address gets 503."""
    async with serving() as nmi:
        nmi.cluster.add(pod("old"), make.identity())
        nmi.pod_lookup.expect("uid-of-old", 7)
        nmi.link = (8, b"")
        answer = await nmi.ask()
        assert (answer.status, "has moved" in answer.json["error_description"]) == (503, True)
        nmi.link = (7, b"")
        assert (await nmi.ask()).status == 200


async def test_a_link_that_the_kernel_lost_binds_nobody_and_proves_nothing() -> None:
    """A connection whose hardware address the kernel lost gets 503, and does not keep the pod from asking later."""
    async with serving() as nmi:
        nmi.cluster.add(pod("first"), make.identity())
        nmi.link = (7, None)
        answer = await nmi.ask()
        assert (answer.status, "cannot be told" in answer.json["error_description"]) == (503, True)
        nmi.link = (7, b"\x02\x00\x00\x00\x00\x01")
        assert (await nmi.ask()).status == 200
        nmi.link = (7, None)
        assert (await nmi.ask()).status == 503
        assert nmi.cluster.looks == 0


async def test_a_lost_link_is_no_loss_where_the_way_in_is_proven() -> None:
    """Without a hardware address, the pod's own port or route proves it; another interface does not."""
    async with serving() as nmi:
        nmi.cluster.add(pod("first"), make.identity())
        nmi.pod_lookup.hold(frozenset({"uid-of-first"}))
        nmi.link = (7, None)
        assert (await nmi.ask()).status == 200
        nmi.pod_lookup.hold(frozenset())
        assert (await nmi.ask()).status == 503
        nmi.pod_lookup.expect("uid-of-first", 7)
        assert (await nmi.ask()).status == 200
        nmi.link = (8, None)
        assert (await nmi.ask()).status == 503


async def test_a_pod_whose_sandbox_was_made_anew_is_known_again() -> None:
    """A pod with a new interface is answered after a minute there, once the API server says that it lives."""
    async with serving() as nmi:
        nmi.cluster.add(web := pod(), make.identity())
        nmi.pod_lookup.expect(web.uid, 7)
        nmi.link = (7, b"\x02\x00\x00\x00\x00\x01")
        assert (await nmi.ask()).status == 200
        nmi.link = (8, b"\x02\x00\x00\x00\x00\x02")
        nmi.clock.jump(MOVED_SECONDS)
        assert (await nmi.ask()).status == 503
        nmi.pod_lookup.expect(web.uid, 8)
        nmi.clock.jump(MOVED_SECONDS - 1)
        assert (await nmi.ask()).status == 503
        nmi.pod_lookup.expect(web.uid, 8)
        nmi.clock.jump(2)
        assert (await nmi.ask()).status == 200
        assert (await nmi.ask()).status == 200
        nmi.link = (7, b"\x02\x00\x00\x00\x00\x01")
        assert (await nmi.ask()).status == 503


@pytest.mark.parametrize(
    "case", ["ending", "another interface", "the route changes", "nobody says so", "only the watch"]
)
async def test_a_pod_that_moved_is_not_believed_before_it_is_sure(case: str) -> None:
    """A moved pod gets 503 while it ends, its route changes or differs, or the API server does not confirm it."""
    async with serving() as nmi:
        nmi.cluster.add(web := pod(), make.identity())
        nmi.pod_lookup.expect(web.uid, 7)
        nmi.link = (7, b"")
        assert (await nmi.ask()).status == 200
        nmi.pod_lookup.expect(web.uid, 8)
        nmi.link = (9 if case == "another interface" else 8, b"")
        nmi.clock.jump(MOVED_SECONDS + 1)
        if case == "ending":
            nmi.cluster.api = [replace(web, ending=True)]
        elif case == "the route changes":
            nmi.pod_lookup.expect(web.uid, 9)
            nmi.pod_lookup.expect(web.uid, 8)
        elif case == "nobody says so":
            nmi.cluster.api = UnreachableError("no answer")
        elif case == "only the watch":
            nmi.cluster.api = []
        assert (await nmi.ask()).status == 503


async def test_a_connection_belongs_to_its_first_pod() -> None:
    """A kept-alive connection is ended with 503 when its address has gone to another pod."""
    async with serving() as nmi:
        nmi.cluster.add(old := pod("old"), make.identity())
        client = await nmi.connect()
        assert (await client.ask()).status == 200
        nmi.cluster.pods.remove(old)
        nmi.cluster.add(pod("new"), make.identity("writer"))
        answer = await client.ask()
        assert (answer.status, answer.headers["connection"]) == (503, "close")
        assert await client.has_ended()


async def test_connections_are_reset_with_their_pod() -> None:
    """When the watch shows that a pod is gone, its open connection ends at once."""
    async with serving() as nmi:
        nmi.cluster.add(web := pod(), make.identity())
        client = await nmi.connect()
        assert (await client.ask()).status == 200
        nmi.cluster.remove(web)
        assert await client.has_ended()


async def test_a_recreated_pod_does_not_inherit() -> None:
    """A new `web-0` with another label gets nothing by the assigned identity of the old `web-0`."""
    async with serving(Settings("n1", wait_created_seconds=0.05)) as nmi:
        nmi.cluster.add(web := pod("web-0"), make.identity())
        assert (await nmi.ask()).status == 200
        nmi.cluster.remove(web)
        nmi.cluster.pods.append(pod("web-0", selector="other", uid="second"))
        assert (await nmi.ask()).status == 404
        assert len(nmi.imds.requests) == 1


@pytest.mark.parametrize("excepted", [True, False])
async def test_excepted_pods_are_answered_as_imds_would(*, excepted: bool) -> None:
    """An exception's pods and MIC itself get any token of IMDS: the machine's, or that of the identity they name."""
    async with serving() as nmi:
        web = replace(pod(selector=""), labels={"app": "Tool"}) if excepted else replace(make.mic_pod(), ips=(ADDRESS,))
        nmi.cluster.pods.append(web)
        nmi.cluster.exceptions.append(AzurePodIdentityException(ObjectKey("default", "e"), {"app": "tool"}))
        assert (await nmi.ask()).token.startswith("token of the-machine ")
        assert (await nmi.ask(f"{TARGET}&client_id=abc")).token.startswith("token of abc ")


async def test_managed_mode_answers_from_bindings() -> None:
    """A binding is enough, without an assigned identity; without a binding the pod gets 404 at once."""
    async with serving(Settings("n1", managed_mode=True, force_namespaced=True)) as nmi:
        nmi.cluster.pods.append(web := pod())
        assert (await nmi.ask()).status == 404
        nmi.cluster.matches.append(Match(web, make.binding(), make.identity()))
        nmi.cluster.notify()
        assert (await nmi.ask()).token.startswith("token of reader ")
