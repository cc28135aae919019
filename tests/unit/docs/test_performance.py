"""docs/performance.md is what its generator writes, and each of its rows has a program that anyone can run."""

import json
import re
from pathlib import Path

import pytest
from measured import page, programs, rows

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "performance.md").read_text()
FIGURES = json.loads((ROOT / "docs" / "performance" / "figures.json").read_text())
PROGRAMS = {name.partition(" ")[0] for name in programs.PROGRAMS | programs.LONG}
"""The files of all programs."""


def test_the_page_is_written_from_its_figures() -> None:
    """`python tools/performance.py page` writes the page, so that no figure is edited by hand."""
    assert page.render(FIGURES) == PAGE


MEASURED = [row for row in rows.ROWS if row.line in FIGURES["lines"]]


@pytest.mark.parametrize("row", MEASURED, ids=lambda row: row.claim[:40])
def test_each_row_of_the_budget_has_a_program_and_a_figure(row: rows.Row) -> None:
    """Each row with a figure has a program in bench/, which `make bench` or its name runs, and a verdict."""
    assert (ROOT / "bench" / f"{row.program}.py").is_file()
    assert row.program in PROGRAMS
    assert row.render(FIGURES["lines"][row.line]["figures"])
    assert row.verdict(FIGURES["lines"][row.line]) in {"yes", "**no**"}


def test_a_row_that_nobody_has_measured_says_so() -> None:
    """A row without a figure says "not measured"."""
    figures = FIGURES | {"lines": {}}
    assert page.render(figures).count("| not measured | - |") == len(rows.ROWS)


def test_a_row_whose_program_was_missing_says_so() -> None:
    """Where one of the programs that the lab is compared with is missing, the rows about the others have figures."""
    spread = {"median": 1.0, "least": 1.0, "most": 1.0}
    entry = {"lab_per_second": spread, "other_per_second": spread, "time over": spread}
    figures = {"requests": {"get a blob, azurite": entry}}
    line = {"figures": figures, "over": [], "load": 0.0, "python": "3.11.2"}
    lines = [
        text
        for text in page.render(FIGURES | {"lines": {"lab": line}}).splitlines()
        if text.endswith("| `bench/lab.py` |")
    ]
    assert [("| not measured | - |" in text, "get a blob 1.00" in text) for text in lines] == [
        (True, False),
        (True, False),
        (True, False),
        (True, False),
        (False, True),
        (True, False),
    ]


def test_figures_of_several_days_say_so() -> None:
    """When rows were measured on different days, the page gives the first and the last day."""
    lines = {"nmi": FIGURES["lines"]["nmi"] | {"date": "2026-01-02"}}
    assert "Measured on 2026-01-02," in page.render(FIGURES | {"date": "2026-01-02", "lines": lines})
    lines["soak"] = FIGURES["lines"]["soak"] | {"date": "2026-03-04"}
    assert "Measured on 2026-01-02 to 2026-03-04," in page.render(FIGURES | {"lines": lines})


def test_make_bench_runs_every_program() -> None:
    """Every program in bench/ is in the list that `make bench` runs."""
    there = {path.stem for path in (ROOT / "bench").glob("*.py") if "def main(" in path.read_text()}
    assert there == PROGRAMS


def test_what_was_not_measured_again_stays_on_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of one program updates that program's rows alone."""
    monkeypatch.setattr(programs, "RESULTS", tmp_path)
    lasting = {"bench": "old"}
    assert programs.collect({"soak real": lasting, "nmi": lasting}) == {"soak real": lasting, "nmi": lasting}
    newer = {"bench": "soak real", "figures": {}, "date": "2026-01-01"}
    (tmp_path / "told.json").write_text(json.dumps(newer))
    assert programs.collect({"soak real": lasting, "nmi": lasting}) == {"soak real": newer, "nmi": lasting}


def test_each_line_says_what_was_measured_its_spread_and_the_verdict() -> None:
    """A line has the median and its spread; the median is compared with the budget."""
    spread = {"median": 2.0, "least": 1.5, "most": 2.5}
    line = {"budget": {"ratio": 1.9, "mib": 52}, "measured": {"ratio": spread, "mib": 50.0}}
    assert programs.verdicts(line) == [
        "ratio: 2 (1.5 to 2.5), at most 1.9: over its budget",
        "mib: 50, at most 52: within its budget",
    ]
    assert programs.verdicts({"figures": {}, "budget": {}}) == ["it has no budget"]


@pytest.mark.parametrize("name", sorted({row.line for row in rows.ROWS}))
def test_each_line_on_the_page_can_be_measured_by_its_name(name: str) -> None:
    """The name of every line can be given to `python tools/performance.py run`."""
    assert rows.run_name(name) in programs.PROGRAMS | programs.LONG


def test_the_plots_are_there() -> None:
    """Each plot of the page is in the repository.

    Plots have no date, so that the same figures give the same bytes.
    """
    pictures = re.findall(r"\]\((performance/[a-z]+\.svg)\)", PAGE)
    assert len(pictures) == 4
    for picture in pictures:
        assert "<dc:date>" not in (ROOT / "docs" / picture).read_text()


def test_a_row_that_is_over_says_so() -> None:
    """A row's verdict comes from its program's output, and only from the limits that concern the row."""
    row = next(row for row in rows.ROWS if row.limits == ("hung",))
    line = FIGURES["lines"][row.line]
    assert row.verdict(line | {"over": ["p99_hung_ms: 200 > 150"]}) == "**no**"
    assert row.verdict(line | {"over": ["p99_quiet_ms: 200 > 150"]}) == "yes"


def test_the_kernels_part_stands_beside_the_servers_own() -> None:
    """Processor time of kernel and server are shown apart; without such figures there is no table.

    A ratio of their sums would hide the part that no server can save.
    """
    told = {
        f"{server}, known head": {"user_micros": {"median": 5.0}, "system_micros": {"median": 16.04}}
        for server in ("nmi", "go")
    }
    split = rows.cpu_split({"loopback, 250 pods": told, "redirect, 250 pods": {"nmi, known head": {}}})
    assert split == ["| loopback, its own | 5.0 | 5.0 | - |", "| loopback, the kernel's | 16.0 | 16.0 | - |"]
