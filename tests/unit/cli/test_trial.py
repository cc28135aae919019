"""Parts of `verify`: the answers of its pods, their manifests, and who signs in."""

import ast
import stat
from pathlib import Path

import httpx2
import pytest

from podidentity.azure import sign_in
from podidentity.azure.clouds import find_cloud
from podidentity.cli.trial import objects
from podidentity.cli.trial.objects import Names, PodAnswer
from podidentity.errors import AzureError, HostError

CLOUD = find_cloud("")


def test_a_pods_answer_is_its_last_line() -> None:
    """The answer is the last line of the pod's log; a log without such a line has none."""
    line = '{"status": 200, "client_id": "c", "seconds": 1.5, "error": "", "without_header": 400}'
    assert objects.read_answer(f"warning\n{line}\n") == PodAnswer(200, "c", 1.5, "", 400)
    assert [objects.read_answer(text) for text in ("", "{}", "[1]", "not JSON")] == [None] * 4


def test_pods_pass_the_strictest_pod_security() -> None:
    """The pods are not root and drop all capabilities, and their program is valid Python."""
    pod = objects.pod(Names("trial").asking_pod, "image", "https://management.azure.com/", selector="trial")
    security, container = pod["spec"]["securityContext"], pod["spec"]["containers"][0]
    assert security["runAsNonRoot"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert pod["metadata"]["labels"] == {"aadpodidbinding": "trial"}
    assert objects.pod(Names("trial").other_pod, "image", "", selector="")["metadata"]["labels"] == {}
    ast.parse(objects.PROGRAM)


def az(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a program `az` with this script on PATH."""
    program = folder / "az"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


async def token(environ: dict[str, str]) -> str:
    """Return a token for ARM."""
    async with httpx2.AsyncClient() as http:
        return await sign_in.credential_of(CLOUD, environ, http).token()


async def test_azs_token_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token for ARM's audience comes from az."""
    az(tmp_path, """test "$4" = https://management.azure.com/ && echo '{"accessToken": "t"}'""", monkeypatch)
    assert await token({}) == "t"


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo 'Please run az login' >&2; exit 1", "az gave no token for ARM: Please run az login"),
        ("exit 1", "it said nothing"),
        ("echo '[]'", "az printed no token"),
    ],
)
async def test_an_az_without_a_token_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, words: str
) -> None:
    """The error has az's own last words."""
    az(tmp_path, script, monkeypatch)
    with pytest.raises(AzureError, match=words):
        await token({})


async def test_without_az_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without az the error says to install it, or to use a service principal."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostError, match="az is not installed; install it and run `az login`, or set AZURE_TENANT_ID"):
        await token({"AZURE_TENANT_ID": "only this"})
