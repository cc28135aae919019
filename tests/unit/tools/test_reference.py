"""The generated reference: each daemon, metric, refusal, variable and reason appears by itself."""

from pathlib import Path

import pytest
from references import answers, commands, environment, events, flags, metrics, source

from podidentity.cli.main import DAEMONS


def write(folder: Path, text: str) -> Path:
    """Write a module of a package that the generators read; the package."""
    package = folder / "package"
    package.mkdir()
    (package / "module.py").write_text(text)
    return package


def test_each_daemon_has_its_flags_and_metrics() -> None:
    """A daemon that is added needs no change of the generators."""
    assert all(f"## `podidentity {name}`" in flags.page() for name in DAEMONS)
    assert {"nmi", "mic", "broker"} <= set(metrics.components())
    assert "`aadpodidentity_nmi_redirect_stands` | gauge" in metrics.page()
    assert "`operation_type`, `status_code`, `namespace`, `resource`" in metrics.page()


def test_a_text_is_found_behind_a_name_and_in_either_branch(tmp_path: Path) -> None:
    """Constants of the module, variables of the function, sentences with values in them."""
    text = 'A = "one"\ndef f(x: str) -> None:\n    b = "two" if x else "three"\n    g(A, b, f"it is {x}: end", x)\n'
    call = next(call for call in source.calls(write(tmp_path, text)) if call.name == "g")
    assert [call.texts(position) for position in range(5)] == [["one"], ["two", "three"], ["it is …: end"], [], []]


def test_an_answer_is_listed_under_its_status() -> None:
    """With the module that gives it."""
    assert answers.answers()[405]["only GET is answered here"] == "core/tokens/imds.py"


def test_a_variable_without_a_meaning_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reads a new one has to say what it is for."""
    monkeypatch.delitem(environment.MEANINGS, "KUBECONFIG")
    with pytest.raises(SystemExit, match="KUBECONFIG has no meaning there"):
        environment.page()


def test_a_reason_that_the_table_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither an event nor a condition is undocumented."""
    monkeypatch.delitem(events.EVENTS, "FirstToken")
    with pytest.raises(SystemExit, match="FirstToken"):
        events.page()


def test_each_command_that_does_something_has_a_section() -> None:
    """The lab's commands are among them."""
    page = commands.page()
    assert all(f"\n## `podidentity {name}`\n" in page for name in ("doctor", "explain pod", "lab up", "nmi"))
