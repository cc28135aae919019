"""`/host/token` on a Unix socket and on loopback: what the secrets-store CSI driver asks, and who else may not."""

import asyncio
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import make
from daemons.nmi.harness import Answer, Serving, pod, serving
from podidentity.errors import HostError
from podidentity.linux.local_socket import open_local_socket
from podidentity.nmi.adapters.peers import admit_root
from podidentity.nmi.listener import Site
from podidentity.nmi.ports import Peer
from podidentity.nmi.settings import Settings

TARGET = "/host/token?resource=https://vault.azure.net"
LOOPBACK = Settings("n1", host_token_loopback=True)
POD_HEADERS = ("podname: web", "podns: default")


def answering_root(settings: Settings = LOOPBACK) -> AbstractAsyncContextManager[Serving]:
    """Run NMI with a loopback listener whose clients are taken for root's."""
    return serving(settings)


async def ask(nmi: Serving, *headers: str, target: str = TARGET) -> Answer:
    """Ask as a program of the node."""
    client = await nmi.connect_as_node()
    return await client.ask(target, *headers)


@pytest.fixture(autouse=True)
def root(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Replace the look-up of a client's user, which has a test of its own; a test may set `uid`."""
    owner: dict[str, Any] = {"uid": 0}

    async def owner_of(_port: int, _peer: Peer) -> Any:
        return owner["uid"]

    monkeypatch.setattr("podidentity.nmi.adapters.peers.owner_of", owner_of)
    return owner


async def test_a_root_program_gets_a_pods_token() -> None:
    """Root gets the token and the identity's client ID, in upstream's shape, and needs no Metadata header."""
    async with answering_root() as nmi:
        nmi.cluster.add(pod(), make.identity())
        answer = await ask(nmi, *POD_HEADERS)
        assert answer.status == 200
        assert answer.json["clientid"] == "client-of-reader"
        assert answer.json["token"]["access_token"].startswith("token of reader ")
        assert (await ask(nmi, *POD_HEADERS)).json == answer.json
        assert len(nmi.imds.requests) == 1


@pytest.mark.parametrize("uid", [1000, None])
async def test_other_programs_get_nothing(root: dict[str, Any], uid: int | None) -> None:
    """A client that is not root, or whose user is not known, gets 403."""
    root["uid"] = uid

    async with answering_root() as nmi:
        nmi.cluster.add(pod(), make.identity())
        assert (await ask(nmi, *POD_HEADERS)).status == 403
        assert nmi.imds.requests == []


@pytest.mark.parametrize(
    ("headers", "target", "status"),
    [
        (("podname: web",), TARGET, 400),
        (("podns: default",), TARGET, 400),
        (("podname: nobody", "podns: default"), TARGET, 404),
        (POD_HEADERS, "/host/token", 400),
        (("Metadata: true",), "/metadata/identity/oauth2/token?resource=a", 404),
        (("Metadata: true",), "/metadata/instance", 404),
    ],
)
async def test_refusals(headers: tuple[str, ...], target: str, status: int) -> None:
    """Without a header or a resource the answer is 400; for an unknown pod and for any other path it is 404."""
    async with answering_root() as nmi:
        nmi.cluster.add(pod(), make.identity())
        answer = await ask(nmi, *headers, target=target)
        assert answer.status == status
        assert nmi.imds.requests == []


@pytest.mark.parametrize(
    ("target", "status"), [("/metadata/instance", 403), ("/metadata/", 404), ("/", 404), ("/host/token/abc", 404)]
)
async def test_a_host_pod_that_asks_the_port_on_loopback_is_answered(target: str, status: int) -> None:
    """On loopback blocked metadata is 403 and an unknown path 404, as upstream's end-to-end suite expects."""
    settings = Settings("n1", block_instance_metadata=True)
    async with answering_root(settings) as nmi:
        assert (await ask(nmi, "Metadata: true", target=target)).status == status


@pytest.mark.parametrize(
    ("headers", "target", "status", "description"),
    [
        (("X: y",), "/metadata/instance", 403, "--block-instance-metadata"),
        (("'Metadata: true'",), "/metadata/instance", 403, "--block-instance-metadata"),
        (("X: y",), "/unknown", 400, "Required metadata header not specified"),
        (("Metadata: true",), "/unknown", 404, "no such metadata path"),
    ],
)
async def test_on_loopback_the_block_precedes_the_header_and_the_header_the_path(
    headers: tuple[str, ...], target: str, status: int, description: str
) -> None:
    """The predecessor's suite relies on this order. A quote is part of a header's name: that header is another."""
    async with answering_root(Settings("n1", block_instance_metadata=True)) as nmi:
        answer = await ask(nmi, *headers, target=target)
        assert answer.status == status
        assert description in answer.json["error_description"]


async def test_it_can_be_switched_off() -> None:
    """With --host-token-endpoint=false nobody gets a token at /host/token."""
    async with answering_root(replace(LOOPBACK, host_token=False)) as nmi:
        nmi.cluster.add(pod(), make.identity())
        assert (await ask(nmi, *POD_HEADERS)).status == 404


async def test_loopback_is_a_door_of_its_own() -> None:
    """Without --host-token-loopback the port on loopback answers /host/token with 404, and names the flag."""
    async with answering_root(Settings("n1")) as nmi:
        nmi.cluster.add(pod(), make.identity())
        answer = await ask(nmi, *POD_HEADERS)
        assert (answer.status, "--host-token-loopback" in answer.json["error_description"]) == (404, True)
        assert nmi.imds.requests == []


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """Yield a directory that everybody may enter, so that it is the socket that keeps others out."""
    directory = Path(tempfile.mkdtemp())
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


async def test_root_asks_on_the_socket(open_directory: Path) -> None:
    """The socket answers root as loopback does, and no other user; one that an earlier process left is replaced."""
    path = open_directory / "host-token.sock"
    async with serving(Settings("n1")) as nmi:
        nmi.cluster.add(pod(), make.identity())
        for _ in range(2):
            await nmi.listener.serve([open_local_socket(path)], Site(nmi.listener.app.answer_node, admit_root))
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        answer = await ask_socket(path)
        assert answer.startswith(b"HTTP/1.1 200 OK")
        assert b"client-of-reader" in answer
        assert (await asyncio.to_thread(as_nobody, path)) == "connected\n"


async def ask_socket(path: Path) -> bytes:
    """Ask on the socket and return the answer."""
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write("\r\n".join((f"GET {TARGET} HTTP/1.1", "Host: x", *POD_HEADERS, "", "")).encode())
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
    body = await reader.readexactly(length)
    writer.close()
    return head + body


CLIENT_PROGRAM = """
import os, socket, sys
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
with socket.socket(socket.AF_UNIX) as asking:
    asking.settimeout(20)
    asking.connect(sys.argv[1])
    print("connected", flush=True)
    try:
        asking.send(b"GET / HTTP/1.1\\r\\n\\r\\n")
        print(asking.recv(100))
    except ConnectionError:
        pass
"""


def as_nobody(path: Path) -> str:
    """Open the socket's mode to everybody, ask as a user without rights, and return what the client printed."""
    path.chmod(0o666)
    process = subprocess.run(
        [sys.executable, "-c", CLIENT_PROGRAM, str(path)], capture_output=True, text=True, check=True, timeout=30
    )
    return process.stdout.removesuffix("b''\n")


@pytest.mark.parametrize("odd", ["writable by others", "no directory", "no socket"])
def test_a_place_that_is_not_ours_alone_is_refused(tmp_path: Path, odd: str) -> None:
    """A directory that is missing or that others may write to is refused, and so is a file that is no socket."""
    directory = tmp_path / "run"
    if odd != "no directory":
        directory.mkdir()
    if odd == "writable by others":
        directory.chmod(0o777)
    if odd == "no socket":
        (directory / "it.sock").write_text("somebody's")
    with pytest.raises(HostError, match=str(directory)):
        open_local_socket(directory / "it.sock")


async def test_pods_are_not_served_it() -> None:
    """A pod that asks for another pod's token at /host/token over the redirect gets 404."""
    async with answering_root() as nmi:
        nmi.cluster.add(pod(), make.identity())
        assert (await nmi.ask(TARGET, *POD_HEADERS)).status == 404
        assert nmi.imds.requests == []


async def test_it_never_says_when_to_come_back() -> None:
    """/host/token sends no Retry-After, not even with --set-retry-after-header: the CSI driver has its own rhythm."""
    async with answering_root(replace(LOOPBACK, wait_created_seconds=0.05, retry_after_header=True)) as nmi:
        nmi.cluster.add(pod())
        answer = await ask(nmi, *POD_HEADERS)
        assert (answer.status, answer.headers.get("retry-after")) == (503, None)
        assert "no assigned identity" in answer.json["error_description"]


async def test_a_silent_watch_of_pods_is_not_trusted() -> None:
    """After two minutes without a sign of life on the watch of pods, /host/token answers 503."""
    async with answering_root() as nmi:
        nmi.cluster.add(pod(), make.identity())
        assert (await ask(nmi, *POD_HEADERS)).status == 200
        nmi.cluster.silent_since = nmi.clock.steady()
        nmi.clock.jump(121)
        answer = await ask(nmi, *POD_HEADERS)
        assert (answer.status, "retry-after" in answer.headers) == (503, False)
