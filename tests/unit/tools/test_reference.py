"""The generated reference finds each daemon, metric, refusal, variable and reason by itself."""

from pathlib import Path

import pytest
from references import answers, commands, environment, events, flags, metrics, source

from podidentity.cli.main import DAEMONS


def write(folder: Path, text: str) -> Path:
    """Write a module of a package that the generators read; return the package."""
    package = folder / "package"
    package.mkdir()
    (package / "module.py").write_text(text)
    return package


def test_each_daemon_has_its_flags_and_metrics() -> None:
    """The pages have the flags and metrics of each daemon in the table of daemons."""
    assert all(f"## `podidentity {name}`" in flags.page() for name in DAEMONS)
    assert {"nmi", "mic", "broker"} <= set(metrics.components())
    assert "`aadpodidentity_nmi_redirect_stands` | gauge" in metrics.page()
    assert "`operation_type`, `status_code`, `namespace`, `resource`" in metrics.page()


def test_a_text_is_found_behind_a_name_and_in_either_branch(tmp_path: Path) -> None:
    """Texts are found in constants, in a function's variables, in both branches of an expression, and in f-strings."""
    text = 'A = "one"\ndef f(x: str) -> None:\n    b = "two" if x else "three"\n    g(A, b, f"it is {x}: end", x)\n'
    call = next(call for call in source.calls(write(tmp_path, text)) if call.name == "g")
    assert [call.texts(position) for position in range(5)] == [["one"], ["two", "three"], ["it is …: end"], [], []]


def test_an_answer_is_listed_under_its_status() -> None:
    """A refusal is listed under its status, with the module that gives it."""
    assert answers.answers()[405]["only GET is answered here"] == "core/tokens/imds.py"


def test_a_variable_without_a_meaning_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that is read somewhere needs a description."""
    monkeypatch.delitem(environment.MEANINGS, "KUBECONFIG")
    with pytest.raises(SystemExit, match="KUBECONFIG has no meaning there"):
        environment.page()


def test_a_reason_that_the_table_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason of an event needs a description."""
    monkeypatch.delitem(events.EVENTS, "FirstToken")
    with pytest.raises(SystemExit, match="FirstToken"):
        events.page()


def test_each_command_that_does_something_has_a_section() -> None:
    """Each command has a section, including those of the lab."""
    page = commands.page()
    assert all(f"\n## `podidentity {name}`\n" in page for name in ("doctor", "explain pod", "lab up", "nmi"))
