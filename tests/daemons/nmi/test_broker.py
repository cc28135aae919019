"""Identities whose tokens come from the broker: NMI and a broker, both on real sockets, without IMDS or MIC."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trustme
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

import make
import serving as servers
from daemons.broker import harness as brokers
from daemons.nmi.harness import Serving, pod, serving
from loops import anyio_backend  # noqa: F401  # all tests here run on uvloop
from podidentity.core.model.identities import AzureIdentity
from podidentity.core.model.snapshot import Pod
from podidentity.nmi.settings import Settings

NMI = "podidentity/nmi"


@contextlib.asynccontextmanager
async def both(folder: Path) -> AsyncIterator[tuple[Serving, brokers.Broker]]:
    """Serve a broker, and an NMI on node n1 that fetches tokens from it."""
    async with brokers.serving(node_daemons=frozenset({NMI})) as broker:
        token = broker.cluster.token(NMI, "nmi-1")
        broker.cluster.tokens[token]["user"]["extra"]["authentication.kubernetes.io/node-name"] = ["n1"]
        (folder / "token").write_text(token)
        (folder / "ca.crt").write_bytes(broker.ca_pem)
        url = f"https://localhost:{broker.port}"
        settings = Settings(
            "n1", wait_known_seconds=0, broker=url, broker_ca=folder / "ca.crt", broker_token=folder / "token"
        )
        async with serving(settings) as nmi:
            yield nmi, broker


def identity(client_id: str = brokers.READER) -> AzureIdentity:
    """Build an identity whose tokens come from the broker."""
    return make.identity(type=3, client_id=client_id)


def add(nmi: Serving, broker: brokers.Broker, account: str = "cart") -> Pod:
    """Let a pod with the identity run on the node, as NMI and the broker see it."""
    web = pod()
    nmi.cluster.add(web, identity())
    broker.cluster.add_pod(str(web.key), account, "n1", uid=web.uid)
    return web


async def test_a_granted_pod_gets_its_token(tmp_path: Path) -> None:
    """The pod asks the metadata address as with any SDK, and NMI asks the broker, not IMDS."""
    async with both(tmp_path) as (nmi, broker):
        broker.cluster.grant("default/cart")
        add(nmi, broker)
        answer = await nmi.ask()
        assert answer.status == 200
        assert answer.json["access_token"] == f"{brokers.READER} https://vault.azure.net/.default no 1"
        assert (await nmi.ask()).json["access_token"].endswith("no 1")
        assert nmi.imds.requests == []


async def test_a_pod_without_a_grant_is_told_at_once(tmp_path: Path) -> None:
    """Without a grant the answer is 400 in IMDS's words, so that SDKs go on, and says who lacks what."""
    async with both(tmp_path) as (nmi, broker):
        add(nmi, broker)
        answer = await nmi.ask()
        assert answer.status == 400
        text = answer.json["error_description"]
        assert text.startswith("Identity not found")
        assert "service account default/cart may not use identity" in text


async def test_a_grant_that_is_withdrawn_ends_within_thirty_seconds(tmp_path: Path) -> None:
    """NMI keeps a token of the broker for seconds only, so the broker soon decides again."""
    async with both(tmp_path) as (nmi, broker):
        broker.cluster.grant("default/cart")
        add(nmi, broker)
        assert (await nmi.ask()).status == 200
        broker.cluster.grants.clear()
        for clock in (nmi.clock, broker.clock):
            clock.jump(29)
        assert (await nmi.ask()).status == 400


async def test_two_pods_of_one_identity_are_judged_each_by_itself(tmp_path: Path) -> None:
    """A pod without a grant is refused, although NMI has another pod's token of the same identity in its cache."""
    async with both(tmp_path) as (nmi, broker):
        broker.cluster.grant("default/cart")
        web = add(nmi, broker)
        assert (await nmi.ask()).status == 200
        nmi.cluster.remove(web)
        other = pod("other")
        nmi.cluster.add(other, identity())
        broker.cluster.add_pod(str(other.key), "another", "n1", uid=other.uid)
        assert (await nmi.ask()).status == 400


@pytest.mark.parametrize("file", ["token", "ca.crt"])
async def test_files_that_are_missing_are_named(file: str, tmp_path: Path) -> None:
    """NMI answers 503 with the missing file's name, and works without a restart once the file exists."""
    async with both(tmp_path) as (nmi, broker):
        broker.cluster.grant("default/cart")
        content = (tmp_path / file).read_bytes()
        (tmp_path / file).unlink()
        add(nmi, broker)
        answer = await nmi.ask()
        assert answer.status == 503
        assert file in answer.json["error_description"]
        (tmp_path / file).write_bytes(content)
        nmi.clock.jump(5)
        assert (await nmi.ask()).status == 200


async def test_a_broker_that_is_away(tmp_path: Path) -> None:
    """NMI answers 503 when it cannot reach the broker by TLS, here because the CA file is empty."""
    async with both(tmp_path) as (nmi, broker):
        (tmp_path / "ca.crt").write_bytes(b"")
        add(nmi, broker)
        assert (await nmi.ask()).status == 503


@pytest.mark.parametrize("token", [None, "", 7, ["t"]])
async def test_what_is_no_token_is_not_passed_on(token: object, tmp_path: Path) -> None:
    """An answer without a token is 503 with the broker's address: no pod may take the word "None" to a vault."""
    authority = trustme.CA()
    (tmp_path / "token").write_text("token")
    authority.cert_pem.write_to_path(tmp_path / "ca.crt")

    async def answer(_: Request) -> Response:
        return JSONResponse({"access_token": token, "expires_in": 3600, "token_type": "Bearer"})

    application = Starlette(routes=[Route("/{path:path}", answer, methods=["POST"])])
    async with servers.serving(application, brokers.server_tls(authority, "localhost")) as port:
        url = f"https://localhost:{port}"
        settings = Settings(
            "n1",
            wait_known_seconds=0,
            broker=url,
            broker_ca=tmp_path / "ca.crt",
            broker_token=tmp_path / "token",
        )
        async with serving(settings) as nmi:
            nmi.cluster.add(pod(), identity())
            reply = await nmi.ask()
            assert reply.status == 503
            assert f"{url} answered with something that is no token" in reply.json["error_description"]
