"""The fuzz targets: first their seeds and the hostile table, then, for some seconds each, inputs of atheris."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from daemons.nmi.corpus import PLAIN, QUERY, TOKEN_PATH, hostile, request
from fuzz import forms, naive
from fuzz.heads import check, check_token_file, fuzz
from podidentity.core.exchange.requests import FORM, parse
from podidentity.core.exchange.requests import TokenRequest as ProxyTokenRequest
from podidentity.core.model.http_request import HttpRequest
from podidentity.core.tokens.imds import Rules, TokenFileRequest, TokenRequest
from podidentity.nmi.heads import METADATA, TOKEN_FILE, Heads

FOLDER = Path(__file__).parent
SEEDS = sorted((FOLDER / "seeds").iterdir())
SECONDS = 20


def test_the_seeds_and_the_hostile_table_hold() -> None:
    """Every seed and every hostile request passes the checks, without the fuzzer too, so that old bugs stay fixed."""
    assert len(SEEDS) >= 20
    for seed in SEEDS:
        fuzz(seed.read_bytes())
    for row in hostile():
        fuzz(row.head)


def test_the_naive_rules_know_the_token_file_door() -> None:
    """By the naive rules some seeds are good requests of that door, with and without a proof, and some are not."""
    heads = [seed.read_bytes() for seed in SEEDS if seed.name.startswith("token-file")]
    outcomes = [naive.token_file_asked(head) for head in heads]
    resource, client_id = "https://vault.azure.net", "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee"
    assert (resource, client_id, "") in outcomes
    assert (resource, client_id, "eyJh.eyJi.c2ln") in outcomes
    assert None in outcomes


def test_the_naive_rules_say_yes_to_what_sdks_send() -> None:
    """The naive rules accept an SDK's request: rules that refuse everything would agree with any refusal."""
    head = request(TOKEN_PATH + QUERY + "&client_id=abc", *PLAIN, "X: y")
    assert naive.token_asked(head) == ("https://vault.azure.net", "abc", "", "")
    assert naive.is_judged_exactly(head)


@pytest.mark.parametrize("broken", ["backslash", "essence"])
def test_the_check_can_fail(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check catches a parser with CVE-2022-23551, and a memory that ignores lines which decide."""
    if broken == "backslash":
        dialect = METADATA._replace(parse=lambda *_: TokenRequest("https://vault.azure.net"))
        monkeypatch.setattr("fuzz.heads.Heads", lambda rules: Heads(rules, dialect))
        head = request("/metadata/identity\\oauth2\\token" + QUERY)
    else:
        monkeypatch.setattr("podidentity.nmi.heads.deciding_lines", lambda head: head.partition(b"\r\n")[0])
        monkeypatch.setattr("fuzz.heads._long_lived", Heads(Rules()))
        check(request(TOKEN_PATH + QUERY))
        head = request(TOKEN_PATH + QUERY, "Host: x")
    with pytest.raises(AssertionError, match=r"was understood|changed the answer|decided"):
        check(head)


def test_the_check_of_the_token_file_door_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check catches a parser that accepts one of two proofs."""
    request = TokenFileRequest(TokenRequest("https://vault.azure.net", forms.CLIENT), proof="eyJh.eyJi.c2ln")
    monkeypatch.setattr("fuzz.heads.TOKEN_FILE", TOKEN_FILE._replace(parse=lambda *_: request))
    check_token_file((FOLDER / "seeds" / "token-file-proof").read_bytes())
    with pytest.raises(AssertionError, match="was understood"):
        check_token_file((FOLDER / "seeds" / "token-file-two-proofs").read_bytes())


def test_the_seeds_of_forms_hold() -> None:
    """Every seed passes the check, and a good request is understood: refusing everything would prove nothing."""
    for seed in forms.SEEDS:
        forms.fuzz(seed.encode())
    request = parse(HttpRequest("POST", forms.PATH, "", FORM, forms.GOOD.encode()), forms.TENANT)
    assert isinstance(request, ProxyTokenRequest)


def test_the_check_of_forms_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check catches a parser that accepts the last of two assertions."""
    request = ProxyTokenRequest(forms.CLIENT, "https://vault.azure.net/.default", "a.b.c")
    monkeypatch.setattr("fuzz.forms.parse", lambda *_: request)
    body = f"{forms.GOOD}&client_assertion=a.b.c".encode()
    with pytest.raises(AssertionError, match="nothing was asked"):
        forms.check(HttpRequest("POST", forms.PATH, "", FORM, body))


@pytest.mark.timeout(240)
@pytest.mark.parametrize("target", ["heads", "forms"])
def test_fuzzing_finds_nothing(target: str, tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    """Guided by coverage, the fuzzer finds no input that breaks a rule or the parser."""
    if not _has_atheris():
        if os.environ.get("CI"):
            pytest.fail("atheris is not installed")
        pytest.skip("atheris is not installed: it has no build for this platform")
    corpus = tmp_path / "corpus"
    shutil.copytree(FOLDER / "seeds", corpus)
    for number, seed in enumerate(forms.SEEDS):
        (corpus / f"form-{number}").write_text(seed)
    limits = (f"-max_total_time={SECONDS}", "-timeout=20", "-max_len=4096", "-rss_limit_mb=1024")
    output = (f"-artifact_prefix={tmp_path}/", "-print_final_stats=1", str(corpus))
    command = [sys.executable, str(FOLDER / f"{target}.py"), *limits, *output]
    process = subprocess.run(command, capture_output=True, text=True, timeout=220, check=False)
    assert process.returncode == 0, process.stderr[-4000:]
    runs = int(process.stderr.split("number_of_executed_units:")[1].split()[0])
    assert runs > len(SEEDS)
    record_property("inputs", runs)


def _has_atheris() -> bool:
    return subprocess.run([sys.executable, "-c", "import atheris"], capture_output=True, check=False).returncode == 0
