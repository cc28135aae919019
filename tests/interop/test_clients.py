"""A client whose tools are missing is named, and a run in CI does not pass without it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from interop import clients


def test_a_missing_tool_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the client and the programs that it needs on PATH."""
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(clients.MissingToolError, match="javascript needs node, npm on PATH"):
        clients.installed("javascript")


@pytest.mark.parametrize(("ci", "outcome"), [("true", pytest.fail.Exception), ("", pytest.skip.Exception)])
def test_it_fails_in_ci_and_is_skipped_elsewhere(
    client: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, ci: str, outcome: type[BaseException]
) -> None:
    """Without its tools a client's test fails in CI and is skipped elsewhere; both messages name the tools."""
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match="java needs java, mvn, keytool"):
        client("java")


def test_new_pins_make_a_new_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Changed pins mean another directory, so an installation never has other versions than its pins."""
    before = clients.CLIENTS["az"].directory
    for pin in clients.CLIENTS["az"].pins:
        (tmp_path / pin).parent.mkdir(exist_ok=True)
        (tmp_path / pin).write_bytes((clients.HERE / pin).read_bytes() + b"\n")
    monkeypatch.setattr(clients, "HERE", tmp_path)
    assert clients.CLIENTS["az"].directory != before
