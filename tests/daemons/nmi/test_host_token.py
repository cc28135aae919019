"""`/host/token` on the node's loopback: what the secrets-store CSI driver asks, and who else may not."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import make
from daemons.nmi.harness import Answer, Serving, pod, serving
from podidentity.nmi.ports import Peer
from podidentity.nmi.settings import Settings

TARGET = "/host/token?resource=https://vault.azure.net"
NAMED = ("podname: web", "podns: default")


def run(test: Callable[[Serving], Awaitable[None]], settings: Settings | None = None) -> None:
    """Run one test against a fresh NMI whose loopback clients are taken for root's."""

    async def act() -> None:
        async with serving(settings) as nmi:
            await test(nmi)

    asyncio.run(act())


async def ask(nmi: Serving, *headers: str, target: str = TARGET) -> Answer:
    """Ask as a program of the node."""
    client = await nmi.connect_as_node()
    return await client.ask(target, *headers)


@pytest.fixture(autouse=True)
def root(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Who the clients are taken for; the real look-up has a test of its own."""
    owner: dict[str, Any] = {"uid": 0}

    async def owner_of(_port: int, _peer: Peer) -> Any:
        return owner["uid"]

    monkeypatch.setattr("podidentity.nmi.daemon._owner_of", owner_of)
    return owner


def test_a_root_program_gets_a_pods_token() -> None:
    """The token and the identity's client ID, in upstream's shape, without a Metadata header."""

    async def test(nmi: Serving) -> None:
        nmi.cluster.add(pod(), make.identity())
        answer = await ask(nmi, *NAMED)
        assert answer.status == 200
        assert answer.json["clientid"] == "client-of-reader"
        assert answer.json["token"]["access_token"].startswith("token of reader ")
        assert (await ask(nmi, *NAMED)).json == answer.json
        assert len(nmi.imds.asked) == 1

    run(test)


@pytest.mark.parametrize("uid", [1000, None])
def test_other_programs_get_nothing(root: dict[str, Any], uid: int | None) -> None:
    """Not root, or nobody knows who: 403."""
    root["uid"] = uid

    async def test(nmi: Serving) -> None:
        nmi.cluster.add(pod(), make.identity())
        assert (await ask(nmi, *NAMED)).status == 403
        assert nmi.imds.asked == []

    run(test)


@pytest.mark.parametrize(
    ("headers", "target", "status"),
    [
        (("podname: web",), TARGET, 400),
        (("podns: default",), TARGET, 400),
        (("podname: nobody", "podns: default"), TARGET, 404),
        (NAMED, "/host/token", 400),
        (("Metadata: true",), "/metadata/identity/oauth2/token?resource=a", 404),
        (("Metadata: true",), "/metadata/instance", 404),
    ],
)
def test_refusals(headers: tuple[str, ...], target: str, status: int) -> None:
    """Missing headers 400; an unknown pod 404; all other paths are those of an unknown pod here."""

    async def test(nmi: Serving) -> None:
        nmi.cluster.add(pod(), make.identity())
        answer = await ask(nmi, *headers, target=target)
        assert answer.status == status
        assert nmi.imds.asked == []

    run(test)


def test_it_can_be_switched_off() -> None:
    """--host-token-endpoint=false."""

    async def test(nmi: Serving) -> None:
        nmi.cluster.add(pod(), make.identity())
        assert (await ask(nmi, *NAMED)).status == 404

    run(test, Settings("n1", host_token=False))


def test_pods_are_not_served_it() -> None:
    """A pod that asks for another pod's token over the redirect gets 404: 500 is kept for our own mistakes."""

    async def test(nmi: Serving) -> None:
        nmi.cluster.add(pod(), make.identity())
        assert (await nmi.ask(TARGET, *NAMED)).status == 404
        assert nmi.imds.asked == []

    run(test)


def test_it_never_says_when_to_come_back() -> None:
    """The CSI driver has a rhythm of its own: no Retry-After, not even with --set-retry-after-header."""

    async def test(nmi: Serving) -> None:
        nmi.cluster.add(pod())
        answer = await ask(nmi, *NAMED)
        assert (answer.status, answer.headers.get("retry-after")) == (503, None)
        assert "no assigned identity" in answer.json["error_description"]

    run(test, Settings("n1", wait_created_seconds=0.05, retry_after_header=True))


def test_a_silent_watch_of_pods_is_not_trusted() -> None:
    """A pod that is known by name alone is not looked up: after two minutes of silence nobody is answered."""

    async def test(nmi: Serving) -> None:
        nmi.cluster.add(pod(), make.identity())
        assert (await ask(nmi, *NAMED)).status == 200
        nmi.cluster.silent_since = nmi.clock.steady()
        nmi.clock.pass_time(121)
        answer = await ask(nmi, *NAMED)
        assert (answer.status, "retry-after" in answer.headers) == (503, False)

    run(test)
