"""The fuzz target: its seeds and the hostile table at once, then thirty seconds of what atheris makes up."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from daemons.nmi.corpus import PLAIN, QUERY, TOKEN_PATH, hostile, request
from fuzz import naive
from fuzz.heads import check, fuzz
from podidentity.core.imds import Rules, TokenRequest
from podidentity.nmi.heads import Heads

HERE = Path(__file__).parent
SEEDS = sorted((HERE / "seeds").iterdir())
SECONDS = 30


def test_the_seeds_and_the_hostile_table_hold() -> None:
    """What was found once stays fixed: every checked-in input is checked without the fuzzer too."""
    assert len(SEEDS) >= 20
    for seed in SEEDS:
        fuzz(seed.read_bytes())
    for row in hostile():
        fuzz(row.sent)


def test_the_naive_rules_say_yes_to_what_sdks_send() -> None:
    """An oracle that refuses everything would agree with everything."""
    head = request(TOKEN_PATH + QUERY + "&client_id=abc", *PLAIN, "X: y")
    assert naive.token_asked(head) == ("https://vault.azure.net", "abc", "", "")
    assert naive.is_judged_exactly(head)


@pytest.mark.parametrize("broken", ["backslash", "essence"])
def test_the_check_can_fail(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A parser with CVE-2022-23551, and a memory that forgets what decides, are both caught."""
    if broken == "backslash":
        monkeypatch.setattr("podidentity.nmi.heads.parse", lambda *_: TokenRequest("https://vault.azure.net"))
        head = request("/metadata/identity\\oauth2\\token" + QUERY)
    else:
        monkeypatch.setattr("podidentity.nmi.heads.essence_of", lambda head: head.partition(b"\r\n")[0])
        monkeypatch.setattr("fuzz.heads._long_lived", Heads(Rules()))
        check(request(TOKEN_PATH + QUERY))
        head = request(TOKEN_PATH + QUERY, "Host: x")
    with pytest.raises(AssertionError, match=r"was understood|changed the answer|decided"):
        check(head)


@pytest.mark.timeout(240)
def test_thirty_seconds_of_fuzzing_find_nothing(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    """Guided by coverage from the seeds: no head breaks a rule, none breaks the parser."""
    if not _has_atheris():
        if os.environ.get("CI"):
            pytest.fail("atheris is not installed")
        pytest.skip("atheris is not installed: it has no build for this platform")
    corpus = tmp_path / "corpus"
    shutil.copytree(HERE / "seeds", corpus)
    command = [sys.executable, str(HERE / "heads.py"), f"-max_total_time={SECONDS}", "-timeout=20", "-max_len=4096",
               "-rss_limit_mb=1024", f"-artifact_prefix={tmp_path}/", "-print_final_stats=1", str(corpus)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=220, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    runs = int(done.stderr.split("number_of_executed_units:")[1].split()[0])
    assert runs > len(SEEDS)
    record_property("inputs", runs)


def _has_atheris() -> bool:
    return subprocess.run([sys.executable, "-c", "import atheris"], capture_output=True, check=False).returncode == 0
