"""The connections by which NMI sends pods' proofs to the broker: used again, replaced, and never mixed up."""

import asyncio
import os
import socket
from pathlib import Path

import pytest

from daemons.broker.harness import READER, WRITER, Reply
from daemons.nmi.relay import Relay
from daemons.nmi.test_token_file import Stage, node_pod, stage
from loops import anyio_backend  # noqa: F401  # all tests here run on uvloop
from podidentity.core.model.identities import ObjectKey
from podidentity.nmi.adapters import broker
from waiting import eventually


def failed_calls(at: Stage) -> float:
    """Return how many calls for tokens have failed, also those that were repeated with success."""
    name, labels = "aadpodidentity_imds_operations_errors_count_total", {"operation_type": "broker_token"}
    return at.nmi.registry.get_sample_value(name, labels) or 0.0


def add_pod(at: Stage, name: str, client_id: str = READER, namespace: str = "default") -> str:
    """Let another pod run on the node's network, with its own service account; return its proof."""
    key = ObjectKey(namespace, name)
    pod = node_pod(name, host_network=True, key=key)
    at.nmi.cluster.add(pod)
    at.broker.cluster.add_pod(str(key), name, "n1", uid=pod.uid)
    at.broker.cluster.grant(str(key), client_id)
    return at.broker.cluster.token(str(key), name)


def target(resource: str, client_id: str = READER) -> str:
    """Return the path that asks for a resource's token."""
    return f"/token-file/{client_id}?api-version=2020-06-01&resource=https://{resource}"


async def test_proofs_share_a_connection(tmp_path: Path) -> None:
    """Proofs that follow each other, of one pod and of others, take one handshake."""
    relay = Relay()
    async with stage(tmp_path, relay, host_network=True) as at:
        proofs = [at.token, add_pod(at, "other"), add_pod(at, "third")]
        for number in range(9):
            assert (await at.ask(proof=proofs[number % 3])).status == 200
        assert len([form for form in at.broker.cluster.questions if form == "token"]) == 3
    assert relay.count == 1


@pytest.mark.parametrize("reset", [False, True])
async def test_a_connection_that_the_broker_has_closed_costs_no_proof(tmp_path: Path, *, reset: bool) -> None:
    """A request that meets a connection's end is sent again on a new one, and counts as no failure."""
    relay = Relay()
    async with stage(tmp_path, relay) as at:
        assert (await at.ask()).status == 200
        relay.cut_at_next_request(reset=reset)
        assert (await at.ask()).status == 200
        assert (relay.count, failed_calls(at)) == (2, 0)
        relay.hang_up()
        await eventually(lambda: not relay.clients, "the end of the connection")
        assert (await at.ask()).status == 200
        assert (relay.count, failed_calls(at)) == (3, 0)


async def test_a_new_connection_that_ends_is_a_failure(tmp_path: Path) -> None:
    """A broker that ends what was just opened is not asked again at once: that is for retries with their pauses."""
    relay = Relay()
    async with stage(tmp_path, relay) as at:
        at.broker.entra.script.append(Reply(200, gate=(gate := asyncio.Event())))
        task = asyncio.ensure_future(at.ask())
        await eventually(lambda: at.broker.entra.forms, "the request at Entra ID")
        relay.hang_up()
        gate.set()
        assert (await task).status == 200
        assert failed_calls(at) == 1


async def test_answers_are_never_mixed_up(tmp_path: Path) -> None:
    """Of many proofs at once, some of which are given up midway, each that is answered has its own pod's token."""
    relay = Relay()
    async with stage(tmp_path, relay, host_network=True) as at:
        pods = {f"pod-{number}": (READER, WRITER)[number % 2] for number in range(24)}
        proofs = {name: add_pod(at, name, client_id) for name, client_id in pods.items()}

        def scopes() -> set[str]:
            return {form["scope"] for form in at.broker.entra.forms}

        async def ask(name: str, number: int) -> None:
            resource = f"{name}.{number}.example"
            if number == 1:
                client = await at.nmi.connect_to_token_file_door()
                task = asyncio.ensure_future(
                    client.ask(target(resource, pods[name]), "Metadata: true", f"Authorization: Basic {proofs[name]}")
                )
                await eventually(lambda: f"https://{resource}/.default" in scopes(), "the request at Entra ID")
                client.hang_up()
                await asyncio.gather(task, return_exceptions=True)
                return
            answer = await at.ask(target(resource, pods[name]), proof=proofs[name])
            assert answer.status == 200, answer.json
            assert answer.token.startswith(f"{pods[name]} https://{resource}/.default ")

        for number in range(3):
            await asyncio.gather(*(ask(name, number) for name in pods))
        assert relay.count < 3 * len(pods)
        await eventually(lambda: len(relay.clients) <= broker.POOL.idle, "no more than some unused connections")


async def test_a_slow_proof_holds_up_nobody_elses(tmp_path: Path) -> None:
    """While the answers to one namespace's proofs take their time, another's gets its token over another connection."""
    relay = Relay()
    async with stage(tmp_path, relay, host_network=True) as at:
        gate = asyncio.Event()
        slow = []
        for number in range(12):
            at.broker.entra.script.append(Reply(200, gate=gate))
            slow.append(asyncio.ensure_future(at.ask(target(f"slow-{number}"))))
        await eventually(lambda: len(at.broker.entra.forms) >= 8, "as many as one namespace may have under way")
        at.broker.entra.script.clear()
        proof = add_pod(at, "other", WRITER, "another")
        assert (await at.ask(target("quick", WRITER), proof=proof)).status == 200
        assert not any(task.done() for task in slow)
        gate.set()
        assert {answer.status for answer in await asyncio.gather(*slow)} == {200}


async def test_another_ca_means_other_connections(tmp_path: Path) -> None:
    """When the broker's CA is replaced, no proof goes over a connection that the old one vouched for."""
    relay = Relay()
    async with stage(tmp_path, relay) as at:
        assert (await at.ask()).status == 200
        status = (tmp_path / "ca.crt").stat()
        os.utime(tmp_path / "ca.crt", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
        assert (await at.ask()).status == 200
        assert relay.count == 2
        await eventually(lambda: len(relay.clients) == 1, "the end of the first connection")


async def test_what_is_sent_into_the_void_is_given_up_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection to a machine that is gone ends when its bytes are not acknowledged, as long as connecting takes."""
    seen = []
    note = broker._Request._note

    async def watch(request: broker._Request, step: str, details: dict[str, object]) -> None:
        await note(request, step, details)
        connection = details["return_value"].get_extra_info("socket") if details else None  # type: ignore[attr-defined]
        if connection is not None:
            seen.append(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT))

    monkeypatch.setattr(broker._Request, "_note", watch)
    async with stage(tmp_path) as at:
        assert (await at.ask()).status == 200
    assert seen == [3000]
