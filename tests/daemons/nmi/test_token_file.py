"""The token-file door: pods that prove themselves with their own token; NMI and a broker, both on real sockets."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from clocks import JumpingClock
from daemons.broker import harness as brokers
from daemons.nmi import harness
from daemons.nmi.corpus import hostile, request
from daemons.nmi.harness import ADDRESS, Answer, FakeCluster, Serving, serving
from daemons.nmi.relay import Relay
from podidentity.core.model.snapshot import Pod
from podidentity.core.tokens.imds import Rules, Token, TokenFileRequest, TokenRequest
from podidentity.core.tokens.sources import Source
from podidentity.errors import AzureError
from podidentity.nmi.heads import HEAD_LIMIT_BYTES, TOKEN_FILE, Heads
from podidentity.nmi.ports import Peer
from podidentity.nmi.settings import Settings
from podidentity.nmi.token_file import TokenFileDoor
from podidentity.nmi.waiting import Waiting
from waiting import eventually

READER, WRITER = brokers.READER, brokers.WRITER
PATH = f"/token-file/{READER}"
QUERY = "?api-version=2020-06-01&resource=https%3A%2F%2Fvault.azure.net"
REALM = "Basic realm=/var/opt/azcmagent/tokens/podidentity.key"
NMI = "podidentity/nmi"
OTHER_ADDRESS = "127.0.0.5"


@dataclass
class Stage:
    """NMI and the broker, and a pod that may use the reader's identity."""

    nmi: Serving
    broker: brokers.Broker
    pod: Pod
    token: str

    async def ask(self, target: str = PATH + QUERY, *headers: str, proof: str | None = None) -> Answer:
        """Ask as an SDK's second request does."""
        client = await self.nmi.connect_to_token_file_door()
        try:
            proof = self.token if proof is None else proof
            return await client.ask(target, "Metadata: true", f"Authorization: Basic {proof}", *headers)
        finally:
            client.hang_up()


def node_pod(name: str, **fields: object) -> Pod:
    """Build a pod of the node at the test's own address; its UID is the one in its tokens."""
    return replace(harness.pod(name, uid=f"uid-of-{name}"), **fields)  # type: ignore[arg-type]


@contextlib.asynccontextmanager
async def stage(folder: Path, relay: Relay | None = None, **fields: object) -> AsyncIterator[Stage]:
    """Serve NMI and the broker, which it reaches by `relay`; `fields` are the pod's. Its account is default/cart."""
    async with (
        brokers.serving(node_daemons=frozenset({NMI})) as broker,
        relay.to(broker.port) if relay else contextlib.nullcontext(broker.port) as port,
    ):
        nmi_token, url = broker.cluster.token(NMI, "nmi-1"), f"https://localhost:{port}"
        broker.cluster.tokens[nmi_token]["user"]["extra"]["authentication.kubernetes.io/node-name"] = ["n1"]
        (folder / "token").write_text(nmi_token)
        (folder / "ca.crt").write_bytes(broker.ca_pem)
        files = {"broker_ca": folder / "ca.crt", "broker_token": folder / "token"}
        async with serving(Settings("n1", wait_known_seconds=0, broker=url, **files)) as nmi:  # type: ignore[arg-type]
            web = node_pod("web", **fields)
            broker.cluster.add_pod(str(web.key), "cart", "n1", uid=web.uid)
            nmi.cluster.add(web)
            broker.cluster.grant("default/cart")
            yield Stage(nmi, broker, web, broker.cluster.token("default/cart", "web"))


def words(answer: Answer) -> str:
    """Return the sentence of a refusal."""
    return str(answer.json["error_description"])


async def test_a_pod_proves_itself_with_its_file(tmp_path: Path) -> None:
    """As with SDKs, the first request is told the file and the second sends its content, on the same connection."""
    async with stage(tmp_path) as at:
        client = await at.nmi.connect_to_token_file_door()
        first = await client.ask(PATH + QUERY, "Metadata: true")
        assert (first.status, first.headers["www-authenticate"]) == (401, REALM)
        second = await client.ask(PATH + QUERY, "Metadata: true", f"Authorization: Basic {at.token}")
        assert second.status == 200
        assert second.json["access_token"] == f"{READER} https://vault.azure.net/.default no 1"
        assert int(second.json["expires_in"]) > 0
        assert "client_id" not in second.json
        assert at.nmi.imds.requests == []
        assert at.broker.entra.forms[0]["client_id"] == READER


@pytest.mark.parametrize("version", ["2020-06-01", "2019-11-01", "2019-08-15"])
async def test_any_version_is_taken(version: str, tmp_path: Path) -> None:
    """The door takes any api-version: Java's SDK up to 1.13 sends 2019-11-01."""
    async with stage(tmp_path) as at:
        assert (await at.ask(f"{PATH}?api-version={version}&resource=https://vault.azure.net")).status == 200


async def test_a_selector_is_echoed_and_a_wrong_one_refused(tmp_path: Path) -> None:
    """A client ID in the query is repeated in the answer, as newer SDKs expect; any other selector gets 400."""
    async with stage(tmp_path) as at:
        answer = await at.ask(f"{PATH}{QUERY}&client_id={READER.upper()}")
        assert answer.json["client_id"] == READER.upper()
        answer = await at.ask(f"/token-file{QUERY}&client_id={READER}")
        assert (answer.status, answer.json["client_id"]) == (200, READER)
        assert WRITER in words(await at.ask(f"{PATH}{QUERY}&client_id={WRITER}"))
        for wrong in (
            f"client_id={WRITER}",
            "client_id=x",
            "object_id=1",
            "msi_res_id=/subscriptions/s",
            "mi_res_id=x",
        ):
            assert (await at.ask(f"{PATH}{QUERY}&{wrong}")).status == 400, wrong
        assert "names no identity" in words(await at.ask(f"/token-file{QUERY}"))
        assert (await at.ask(f"/token-file{QUERY}&client_id=x")).status == 400
        assert len(at.broker.entra.forms) == 1


async def test_the_grants_of_the_pods_own_account_decide(tmp_path: Path) -> None:
    """Without a grant, or after it was withdrawn, the answer is 403 in the broker's words: NMI caches nothing here."""
    async with stage(tmp_path) as at:
        assert (await at.ask()).status == 200
        answer = await at.ask(f"/token-file/{WRITER}{QUERY}")
        assert answer.status == 403
        assert f"service account default/cart may not use identity {WRITER}" in words(answer)
        at.broker.cluster.grants.clear()
        at.broker.clock.jump(29)
        assert (await at.ask()).status == 403


async def test_a_token_of_another_pod_is_refused(tmp_path: Path) -> None:
    """From one pod's address the token of a neighbour, of a pod on the node's network or of one elsewhere gets 403."""
    async with stage(tmp_path) as at:
        for neighbour in (node_pod("neighbour", ips=(OTHER_ADDRESS,)), node_pod("on-host", host_network=True)):
            at.nmi.cluster.add(neighbour)
            answer = await at.ask(proof=at.broker.cluster.token("default/cart", neighbour.key.name))
            assert answer.status == 403
            assert f"{ADDRESS} is another pod's address" in words(answer)
        answer = await at.ask(proof=at.broker.cluster.token("default/cart", "far"))
        assert (answer.status, "does not run on this node" in words(answer)) == (403, True)
        at.nmi.cluster.remove(at.pod)
        assert (await at.ask()).status == 403
        at.nmi.cluster.add(replace(at.pod, uid="another"))
        assert (await at.ask()).status == 403
        assert at.broker.cluster.questions == []


async def test_a_pod_on_the_nodes_own_network(tmp_path: Path) -> None:
    """A pod on the node's network shares the node's address, so its own token alone says which pod it is."""
    async with stage(tmp_path, host_network=True) as at:
        answer = await at.ask()
        assert answer.status == 200
        assert answer.json["access_token"].startswith(READER)


@dataclass
class OneToken:
    """A source that refuses every proof."""

    clock: JumpingClock

    async def acquire(self, source: Source, resource: str) -> Token:
        """Refuse as the broker does."""
        raise AzureError(f"no {source} {resource}", status=401, code="invalid_client")


def direct_door(clock: JumpingClock, cluster: FakeCluster, *, own: bool) -> TokenFileDoor:
    """Build a door for which every address counts as the host's own, or none does."""
    return TokenFileDoor(cluster, OneToken(clock), Waiting(), lambda _: own, clock, 0.0)


@pytest.mark.parametrize(
    ("own", "ips", "status"), [(False, ("10.0.0.7",), 403), (True, ("10.0.0.7",), 401), (False, (), 401)]
)
async def test_where_a_pod_may_ask_from(*, own: bool, ips: tuple[str, ...], status: int) -> None:
    """A pod may ask from its own or its node's address, and from any while its own is not known."""
    clock = JumpingClock()
    cluster, broker = FakeCluster(clock), brokers.Cluster(clock)
    cluster.add(node_pod("web", ips=ips))
    file_request = TokenFileRequest(TokenRequest("r", READER), proof=broker.token("default/cart", "web"))
    answer = await direct_door(clock, cluster, own=own).answer(file_request, Peer("10.9.9.9"))
    assert answer.status == status  # 401: the request reached the broker


async def test_a_stale_watch_refuses(tmp_path: Path) -> None:
    """While the watch of pods is unconfirmed for too long, no proof is accepted."""
    async with stage(tmp_path) as at:
        at.nmi.cluster.silent_since = at.nmi.clock.steady()
        at.nmi.clock.jump(121)
        assert (await at.ask()).status == 503


async def test_a_proof_may_be_ahead_of_the_watch(tmp_path: Path) -> None:
    """A pod that asks before NMI's watch shows it waits for the watch instead of being refused."""
    async with stage(tmp_path) as at:
        door = at.nmi.listener.app._token_file  # by the stage's settings no request waits
        door._wait_seconds = 25.0
        at.nmi.cluster.remove(at.pod)
        task = asyncio.ensure_future(at.ask())
        await eventually(lambda: len(door._waiting), "the request waits")
        at.nmi.cluster.add(at.pod)
        at.nmi.cluster.follower.pod_changed(at.pod.key)
        assert (await task).status == 200


async def test_a_proof_that_the_cluster_does_not_accept(tmp_path: Path) -> None:
    """A forged, expired, foreign or unbound token, and what is no token at all, gets 401 and the file's name again."""
    async with stage(tmp_path) as at:
        forged = at.token.rpartition(".")[0] + ".Zm9yZ2Vk"
        expired = at.broker.cluster.token("default/cart", "web", life_seconds=-1)
        foreign = at.broker.cluster.token("default/cart", "web", audience="api://AzureADTokenExchange")
        unbound = at.broker.cluster.token("default/cart", "")
        for proof in (forged, expired, foreign, unbound, "x", "", "a.b.c", "x" * 5000):
            answer = await at.ask(proof=proof)
            assert (answer.status, answer.headers["www-authenticate"]) == (401, REALM), proof
        assert at.broker.entra.forms == []


async def test_new_tokens_of_a_pod_are_bounded(tmp_path: Path) -> None:
    """A pod may show five new tokens at once, and another seconds later; its known token and its neighbour go on."""
    async with stage(tmp_path) as at:
        at.nmi.cluster.add(neighbour := node_pod("neighbour"))
        assert (await at.ask()).status == 200
        start, _, _ = at.token.rpartition(".")
        answers = [await at.ask(proof=f"{start}.{number}") for number in range(5)]
        assert [answer.status for answer in answers] == [401, 401, 401, 401, 429]
        assert int(answers[-1].headers["retry-after"]) > 0
        assert (await at.ask()).status == 200
        assert (await at.ask(proof=at.broker.cluster.token("default/cart", neighbour.key.name))).status == 200
        at.nmi.clock.jump(3)
        assert (await at.ask(proof=at.broker.cluster.token("default/cart", "web"))).status == 200


PROXIED = ["X-Forwarded-For: 10.0.0.1", "X-Forwarded-Host: a", "X-Forwarded-Proto: http", "X-Real-IP: 10.0.0.1"]


@pytest.mark.parametrize("header", [*PROXIED, "Forwarded: for=10.0.0.1", "Via: 1.1 proxy", "x-FORWARDED-for:"])
async def test_what_was_passed_on_is_refused(header: str, tmp_path: Path) -> None:
    """A request that came through a proxy gets 400: a program with an open proxy would lend its identity to others."""
    async with stage(tmp_path) as at:
        assert (await at.ask(PATH + QUERY, header)).status == 400
        assert at.broker.cluster.questions == []


def hostile_requests(token: str) -> list[tuple[bytes, set[int]]]:
    """Return requests that must get no token, each with the statuses that it may get instead."""
    good = f"GET {PATH}{QUERY} HTTP/1.1\r\nHost: x\r\nMetadata: true\r\nAuthorization: Basic {token}\r\n\r\n".encode()
    assert good.count(b"Metadata: true") == 1
    path = PATH.encode()
    proof = f"Authorization: Basic {token}".encode()

    def changed(old: bytes, new: bytes, *statuses: int) -> tuple[bytes, set[int]]:
        assert old in good
        return good.replace(old, new, 1), set(statuses)

    paths = [
        path + b"/", b"/token-file/", b"/token-file/x", b"//token-file", b"/./token-file", b"/token-file/../" + path,
        path.replace(b"/token-file", b"/TOKEN-FILE"), path.replace(b"/", b"%2f"), path.replace(b"a", b"\xe1"), b"*",
        path + b"%20", path + b";a", path + b"#", path + b"/x", path + b"\x00", b"\\token-file", b"/token-file/%61",
        b"http://x" + path, b"/metadata/identity/oauth2/token", b"/host/token", b"/metadata/instance", b"/",
    ]  # fmt: skip
    return [
        *(changed(path, other, 400, 404) for other in paths),
        *(changed(b"GET", method, 400, 405) for method in (b"POST", b"PUT", b"OPTIONS", b"get", b"HEAD", b"TRACE")),
        changed(b"Metadata: true\r\n", b"", 400),
        changed(b"Metadata: true", b"Metadata: false", 400),
        changed(b"Metadata: true", b"Metadata: true\r\nMetadata: true", 400),
        changed(b"Metadata: true", b"Metadata : true", 400),
        changed(proof, proof + b"\r\n" + proof, 401),
        changed(proof, proof.replace(b"Basic", b"Bearer"), 401),
        changed(proof, proof.replace(b"Basic ", b"Basic\t"), 401),
        changed(proof, proof.replace(b"Basic ", b"Basic  "), 401),
        changed(proof, proof.replace(b"Basic ", b"Basic"), 401),
        changed(proof, proof.replace(b".", b",", 1), 401),
        changed(proof, proof + b" x", 401),
        changed(proof, proof + b"=", 401),
        changed(proof, proof + b"\xff", 400, 401),
        changed(proof, proof.replace(b".", b".\r\n ", 1), 400),
        changed(proof, b"Authorization: Basic", 401),
        changed(proof, b"Proxy-" + proof, 401),
        changed(b"resource=", b"resource=a&resource=", 400),
        changed(b"resource=", b"other=", 400),
        changed(b"https%3A", b"%00", 400),
        changed(b"https%3A", b"%ff", 400),
        changed(b"Host: x", b"Host: x\r\nHost: y", 400),
        changed(b"Host: x\r\n", b"", 400),
        changed(b"Host: x", b"Host: x\r\nContent-Length: 3", 400),
        changed(b"Host: x", b"Host: x\r\nTransfer-Encoding: chunked", 400),
        changed(b"Host: x", b"Host: x\r\nUpgrade: h2c\r\nConnection: Upgrade", 400),
        changed(b"HTTP/1.1", b"HTTP/2.0", 400),
        changed(b"HTTP/1.1", b"HTTP/0.9", 400),
        changed(b"\r\nMetadata", b"\nMetadata", 400),
        changed(b"Host: x", b"Host: x\r\n" + b"a: b\r\n" * 64 + b"c: d", 431),
        changed(b"Host: x", b"Host: x\r\na: " + b"b" * HEAD_LIMIT_BYTES, 431),
        changed(b"api-version", b"a" * 2048, 414),
    ]  # fmt: skip


async def test_no_hostile_request_gets_a_token(tmp_path: Path) -> None:
    """No hostile request of either door's list gets a token here or reaches the broker."""
    async with stage(tmp_path) as at:
        rows = hostile_requests(at.token)
        rows += [(row.head, {400, 401, 404, 405, 408, 413, 414, 431, 0}) for row in hostile()]
        wrong = [(head, status) for head, statuses in rows if (status := await status_of(at.nmi, head)) not in statuses]
        assert wrong == []
        assert at.broker.cluster.questions == []


async def status_of(nmi: Serving, head: bytes) -> int:
    """Send bytes and no more, and read the status; 0 when the connection ends without one."""
    client = await nmi.connect_to_token_file_door()
    try:
        client.writer.write(head)
        client.writer.write_eof()
        return (await client.read(has_content=not head.startswith(b"HEAD "))).status
    except (asyncio.IncompleteReadError, ConnectionError):
        return 0
    finally:
        client.hang_up()


async def test_neither_door_opens_the_other(tmp_path: Path) -> None:
    """The metadata address takes no proof, and the token-file door answers no metadata request."""
    async with stage(tmp_path) as at:
        assert (await at.nmi.ask(PATH + QUERY, "Metadata: true", f"Authorization: Basic {at.token}")).status == 404
        assert (await at.ask("/metadata/instance?api-version=2021-02-01")).status == 404


def test_no_head_of_this_door_is_remembered() -> None:
    """NMI remembers no head of this door, because a head contains the pod's proof."""
    heads, head = (
        Heads(Rules(), TOKEN_FILE),
        request(PATH + QUERY, "Host: x", "Metadata: true", "Authorization: Basic a.b.c"),
    )
    meaning = heads.understand(head)
    assert isinstance(meaning.request, TokenFileRequest)
    assert meaning.request.proof == "a.b.c"
    assert "a.b.c" not in repr(meaning)
    assert heads.recall(head) is None


async def test_places_here_take_none_of_the_metadata_addresss(tmp_path: Path) -> None:
    """A pod that has all its connections here still gets one to the metadata address, and its neighbour one here."""
    async with stage(tmp_path) as at:
        clients = [await at.nmi.connect_to_token_file_door() for _ in range(257)]
        assert await clients[-1].has_ended()
        assert (await at.nmi.ask("/x")).status == 404
        neighbour = await at.nmi.connect_to_token_file_door(OTHER_ADDRESS)
        assert (await neighbour.ask(PATH + QUERY)).status == 401


async def test_each_request_is_a_line_of_the_log(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """NMI logs the door and the broker the service account of each request; neither logs a token."""
    async with stage(tmp_path) as at:
        await at.ask()
        await at.ask(f"/token-file/{WRITER}{QUERY}")
        output = capfd.readouterr().err
        assert at.token not in output
        lines = [line for line in output.splitlines() if "audit" in line]
        assert [("door=token-file" in line, "pod=web" in line) for line in lines] == [(True, True)] * 4
        assert ["service_account=cart" in line for line in lines] == [True, False, True, False]


async def test_a_broker_that_fails(tmp_path: Path) -> None:
    """A refusal of Entra ID, which the broker passes on, reaches the pod with its status."""
    async with stage(tmp_path) as at:
        at.broker.entra.script.append(brokers.Reply(400, {"error": "invalid_scope", "error_description": "AADSTS1"}))
        assert (await at.ask()).status == 400


async def test_a_broker_whose_ca_is_not_there_yet(tmp_path: Path) -> None:
    """NMI answers 503 with the missing CA file's name, and works without a restart once it exists."""
    async with stage(tmp_path) as at:
        content = (tmp_path / "ca.crt").read_bytes()
        (tmp_path / "ca.crt").unlink()
        answer = await at.ask()
        assert (answer.status, "ca.crt" in words(answer)) == (503, True)
        (tmp_path / "ca.crt").write_bytes(content)
        assert (await at.ask()).status == 200
