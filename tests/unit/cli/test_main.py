"""The `podidentity` command: help, exit statuses, and one sentence for each error."""

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
    """The help has the lab's and the daemons' commands, and fits a screen of 24 lines."""
    assert run("--help") == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {name} " in shown for name in ("lab", "mic", "nmi"))
    assert len(shown.splitlines()) <= 24


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """`--version` prints the version."""
    assert run("--version") == 0
    assert __version__ in capsys.readouterr().out


@pytest.mark.parametrize("words", [["nonsense"], ["--nonsense"]])
def test_a_wrong_word_is_one_sentence_and_status_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The error names the wrong word, without a traceback."""
    assert run(*words) == 2
    said = capsys.readouterr().err
    assert "nonsense" in said
    assert "Traceback" not in said


def test_an_error_becomes_a_sentence_and_its_exit_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An error is printed as one sentence, and its class decides the exit status."""

    def fail(_words: list[str]) -> int:
        raise ConfigurationError("azure.json: line 3: tenantId is empty; fill it in")

    monkeypatch.setattr(cli, "_run", fail)
    assert run("mic") == 2
    assert capsys.readouterr().err == "error: azure.json: line 3: tenantId is empty; fill it in\n"


@pytest.mark.parametrize("daemon", ["mic", "nmi"])
def test_a_daemon_ends_when_told_to_while_it_starts(daemon: str) -> None:
    """SIGTERM ends a daemon that is still starting.

    A container's first process would ignore the signal without a handler.
    """
    program = (
        "import os, signal, sys; from podidentity.cli import main;"
        "main._run = lambda words: os.kill(os.getpid(), signal.SIGTERM);"
        f"sys.argv = ['podidentity', '{daemon}']; main.main()"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 143
