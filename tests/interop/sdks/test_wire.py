"""What the SDKs send, byte for byte: the forms of requests that NMI's parser is made for."""

import json
import os
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from interop.sdks.conftest import HERE, node_command
from podidentity.core.tokens.imds import Rules, TokenRequest
from podidentity.nmi.heads import Heads, deciding_lines

ID = "/subscriptions/s/resourcegroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/n"


class Recorder(socketserver.ThreadingTCPServer):
    """A server that answers every request with a token and keeps the request heads."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Recording)
        self.heads: list[bytes] = []


class _Recording(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        received = b""
        while piece := self.request.recv(65536):
            received += piece
            while b"\r\n\r\n" in received:
                head, _, received = received.partition(b"\r\n\r\n")
                assert isinstance(self.server, Recorder)
                self.server.heads.append(head + b"\r\n\r\n")
                _answer(self.request)


def _answer(connection: socket.socket) -> None:
    ends = int(time.time()) + 86400
    token = {"access_token": "t", "refresh_token": "", "expires_in": "86400", "expires_on": str(ends)}
    body = json.dumps(token | {"not_before": "0", "resource": "r", "token_type": "Bearer"}).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    """A recording server in this process."""
    with Recorder() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def ask(recorder: Recorder, client: str, *asked: dict[str, Any]) -> list[bytes]:
    """Ask with one SDK, and return the request heads that it sent."""
    command = node_command() if client == "node" else [sys.executable, str(HERE / "ask.py")]
    lines = [
        json.dumps({"client": client, "resource": f"https://r{number}.example", "chain": False, "options": one})
        for number, one in enumerate(asked)
    ]
    address = f"http://127.0.0.1:{recorder.server_address[1]}"
    environ = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "AZURE_POD_IDENTITY_AUTHORITY_HOST": address}
    done = subprocess.run(
        command, input="\n".join(lines), env=environ, capture_output=True, text=True, timeout=100, check=False
    )
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one.get("token") for one in told] == ["t"] * len(asked), (told, done.stderr)
    return recorder.heads


@pytest.mark.parametrize(("client", "slash"), [("sync", ""), ("aio", ""), ("msal", ""), ("node", "/")])
def test_each_sdk_asks_in_its_own_way(recorder: Recorder, client: str, slash: str) -> None:
    """Each SDK's path, api-version, Metadata header and selector are understood as a token request."""
    by_resource_id = {"msi_res_id": ID}
    options: list[dict[str, Any]] = [{}, {"client_id": "c"}, by_resource_id]
    if client in {"sync", "aio"}:
        options[2] = {"identity_config": {"resource_id": ID} if client == "sync" else by_resource_id}
    heads = ask(recorder, client, *options)
    parsed = [Heads(Rules()).understand(head).request for head in heads]
    assert parsed == [
        TokenRequest("https://r0.example"),
        TokenRequest("https://r1.example", client_id="c"),
        TokenRequest("https://r2.example", resource_id=ID),
    ]
    for head in heads:
        assert head.startswith(f"GET /metadata/identity/oauth2/token{slash}?".encode())
        assert b"api-version=2018-02-01" in head.split(b"\r\n")[0]
        assert b"\r\nmetadata: true\r\n" in head.lower()


@pytest.mark.parametrize("client", ["sync", "aio", "node"])
def test_a_new_request_id_does_not_make_a_new_question(recorder: Recorder, client: str) -> None:
    """SDKs put something unique into each head: NMI must recognise the next head without parsing it."""
    one, two = ask(recorder, client, {}, {})
    two = two.replace(b"r1.example", b"r0.example")
    assert deciding_lines(one) == deciding_lines(two) is not None
    heads = Heads(Rules())
    meaning = heads.understand(one)
    assert heads.recall(two) is meaning
