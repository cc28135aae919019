"""The `podidentity` command: help, exit statuses, one sentence for each error."""

import subprocess
import sys

import pytest

from podidentity import __version__
from podidentity.cli import main as cli
from podidentity.errors import ConfigurationError


def run(*words: str) -> int:
    """Run the command; return its exit status."""
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    return int(ended.value.code or 0)


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    """A newcomer sees what there is, on one screen."""
    assert run("--help") == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {name} " in shown for name in ("lab", "mic", "nmi"))
    assert len(shown.splitlines()) <= 24


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """`--version` names program and version."""
    assert run("--version") == 0
    assert __version__ in capsys.readouterr().out


@pytest.mark.parametrize("words", [["nonsense"], ["--nonsense"]])
def test_a_wrong_word_is_one_sentence_and_status_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The word is named; no traceback."""
    assert run(*words) == 2
    said = capsys.readouterr().err
    assert "nonsense" in said
    assert "Traceback" not in said


def test_an_error_becomes_a_sentence_and_its_exit_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The class of the error decides the status."""

    def fail(_words: list[str]) -> int:
        raise ConfigurationError("azure.json: line 3: tenantId is empty; fill it in")

    monkeypatch.setattr(cli, "_run", fail)
    assert run("mic") == 2
    assert capsys.readouterr().err == "error: azure.json: line 3: tenantId is empty; fill it in\n"


@pytest.mark.parametrize("daemon", ["mic", "nmi"])
def test_a_daemon_ends_when_told_to_while_it_starts(daemon: str) -> None:
    """A container's first process would never see the signal; with a handler from the first moment on it does."""
    program = (
        "import os, signal, sys; from podidentity.cli import main;"
        "main._run = lambda words: os.kill(os.getpid(), signal.SIGTERM);"
        f"sys.argv = ['podidentity', '{daemon}']; main.main()"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 143
