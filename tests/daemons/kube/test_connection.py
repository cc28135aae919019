"""Finding the cluster: which file wins, what a bad one says, and tokens that are renewed under a running client."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest

from clocks import JumpingClock
from daemons.kube.scripted import Reply, ScriptedServer, kubeconfig
from podidentity.errors import ConfigurationError
from podidentity.kube.connection import RotatingToken, find_cluster, open_client
from podidentity_lab.azure.tls import Authority


def _write(path: Path, server: str) -> str:
    path.write_text(json.dumps(kubeconfig(server)))
    return str(path)


def test_the_flag_wins_over_the_environment(tmp_path: Path) -> None:
    """A kubeconfig given by the flag is used even where KUBECONFIG names another."""
    flag, variable = _write(tmp_path / "flag", "http://flag:1"), _write(tmp_path / "env", "http://env:1")
    assert find_cluster(flag, {"KUBECONFIG": variable}).server == "http://flag:1"
    assert find_cluster("", {"KUBECONFIG": variable}).server == "http://env:1"


def test_a_pod_uses_its_service_account(tmp_path: Path) -> None:
    """Without a kubeconfig, a daemon in a pod finds the API server through its environment, IPv6 included."""
    environ = {"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "443"}
    with pytest.raises(ConfigurationError, match=f"{tmp_path}/token does not exist"):
        find_cluster("", environ, service_account=tmp_path)
    (tmp_path / "token").write_text("t")
    assert find_cluster("", environ, service_account=tmp_path).server == "https://[fd00::1]:443"


async def test_a_pod_trusts_its_clusters_ca_and_no_other(tmp_path: Path) -> None:
    """The API server's certificate is checked against the account's `ca.crt`; the token goes with each request."""
    authority, other_authority = Authority({}), Authority({})
    heads: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
        await writer.drain()
        writer.close()

    listening = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=authority.context("localhost"))
    port = listening.sockets[0].getsockname()[1]
    environ = {"KUBERNETES_SERVICE_HOST": "localhost", "KUBERNETES_SERVICE_PORT": str(port)}
    (tmp_path / "token").write_text("t")
    async with listening:
        (tmp_path / "ca.crt").write_bytes(authority.pem)
        async with open_client(find_cluster("", environ, service_account=tmp_path)) as http:
            assert (await http.get("/version")).status_code == 200
        (tmp_path / "ca.crt").write_bytes(other_authority.pem)
        async with open_client(find_cluster("", environ, service_account=tmp_path)) as http:
            with pytest.raises(httpx2.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                await http.get("/version")
    assert [b"Authorization: Bearer t" in head and head.startswith(b"GET /version ") for head in heads] == [True]
    (tmp_path / "ca.crt").write_text("none")
    with pytest.raises(ConfigurationError, match="service account"):
        open_client(find_cluster("", environ, service_account=tmp_path))


def test_a_person_has_a_kubeconfig_at_home(tmp_path: Path) -> None:
    """Commands for people fall back to ~/.kube/config; daemons, which pass no home, never do."""
    (tmp_path / ".kube").mkdir()
    _write(tmp_path / ".kube" / "config", "http://home:1")
    assert find_cluster("", {}, home=tmp_path).server == "http://home:1"
    with pytest.raises(ConfigurationError, match="set KUBECONFIG"):
        find_cluster("", {})


def _drop(name: str) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        config = json.loads(path.read_text())
        del config[name]
        path.write_text(json.dumps(config))

    return spoil


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.unlink(), "does not exist; correct the path"),
        (lambda path: path.unlink() or path.mkdir(), "is a directory; name a file in it"),
        (lambda path: path.write_text("a: [b"), "not YAML"),
        (lambda path: path.write_text(""), "it is empty; name another file"),
        (lambda path: path.write_text("hello"), "it is no kubeconfig; name another file"),
        (lambda path: path.write_text("[1]"), "it is no kubeconfig; name another file"),
        (lambda path: path.write_bytes(b"\xff\xfe\x00"), "it is not text; correct the file"),
        (_drop("clusters"), "'clusters' is missing"),
        (_drop("contexts"), "'contexts' is missing"),
        (_drop("current-context"), "No current context"),
        (lambda path: path.write_text(json.dumps({**kubeconfig("http://x"), "clusters": []})), "'test' is missing"),
        (lambda path: path.write_text(json.dumps({**kubeconfig("http://x"), "clusters": 5})), "correct the file"),
    ],
)
def test_a_bad_kubeconfig_is_one_sentence_that_names_it(
    spoil: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    """Whatever is wrong with the file, the user reads which file and what to do, on one line."""
    path = tmp_path / "kubeconfig"
    _write(path, "http://x")
    spoil(path)
    with pytest.raises(ConfigurationError) as caught:
        find_cluster(str(path))
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "advice"),
    [
        (kubeconfig("http://x"), "give one of test"),
        ({**kubeconfig("http://x"), "contexts": None}, "name another file"),
        ({**kubeconfig("http://x"), "contexts": [5]}, "name another file"),
    ],
)
def test_a_context_that_is_not_there(content: dict[str, object], advice: str, tmp_path: Path) -> None:
    """Those that the file has are named."""
    path = tmp_path / "kubeconfig"
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigurationError, match=f'kubeconfig: it has no context "other"; {advice}'):
        find_cluster(str(path), context="other")


@pytest.mark.parametrize(
    "cluster",
    [
        {"certificate-authority": "/nowhere/ca.pem"},
        {"certificate-authority-data": "!!!"},
        {"certificate-authority-data": "bm90IGEgY2VydGlmaWNhdGU="},
    ],
)
def test_a_bad_certificate_is_one_sentence(cluster: dict[str, str], tmp_path: Path) -> None:
    """A CA that is missing, no base64 or no certificate is found when the client is opened."""
    config = kubeconfig("https://127.0.0.1:1")
    config["clusters"][0]["cluster"] |= cluster
    path = tmp_path / "kubeconfig"
    path.write_text(json.dumps(config))
    with pytest.raises(ConfigurationError, match="kubeconfig"):
        open_client(find_cluster(str(path)))


async def test_a_renewed_token_is_used_within_a_minute(tmp_path: Path, server: ScriptedServer) -> None:
    """The kubelet rotates the service account's token; the client follows without being refused first."""
    clock, file = JumpingClock(), tmp_path / "token"
    file.write_text("first\n")
    async with httpx2.AsyncClient(auth=RotatingToken(file, clock)) as http:
        await http.get(f"http://127.0.0.1:{server.port}/")
        file.write_text("second\n")
        await http.get(f"http://127.0.0.1:{server.port}/")
        clock.jump(60)
        await http.get(f"http://127.0.0.1:{server.port}/")
    assert [request.headers["authorization"] for request in server.requests] == [
        "Bearer first",
        "Bearer first",
        "Bearer second",
    ]


async def test_a_refused_token_is_read_again_at_once(tmp_path: Path, server: ScriptedServer) -> None:
    """A 401 costs one further request, not a failure, when the file holds a newer token."""
    clock, file = JumpingClock(), tmp_path / "token"
    file.write_text("old")
    async with httpx2.AsyncClient(auth=RotatingToken(file, clock)) as http:
        await http.get(f"http://127.0.0.1:{server.port}/")
        file.write_text("new")
        server.answer_next(Reply.refusal(401))
        answer = await http.get(f"http://127.0.0.1:{server.port}/")
        assert answer.status_code != 401
        # Unchanged, it is not sent twice: that would double the load of every daemon with a dead token.
        server.answer_next(Reply.refusal(401))
        assert (await http.get(f"http://127.0.0.1:{server.port}/")).status_code == 401
        file.unlink()
        clock.jump(60)
        await http.get(f"http://127.0.0.1:{server.port}/")
    assert server.requests[-1].headers["authorization"] == "Bearer new"
    assert len(server.requests) == 5
