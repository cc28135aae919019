"""docs/performance.md is what its generator writes, and each promise in it has a program that anyone can run."""

import json
import re
from pathlib import Path

import pytest
from measured import page, programs, rows

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "performance.md").read_text()
FIGURES = json.loads((ROOT / "docs" / "performance" / "figures.json").read_text())


def test_the_page_is_written_from_its_figures() -> None:
    """Nobody edits a figure by hand: `python tools/performance.py page` writes figures, page and plots together."""
    assert page.render(FIGURES) == PAGE


@pytest.mark.parametrize("row", rows.ROWS, ids=lambda row: row.what[:40])
def test_each_row_of_the_budget_has_a_program_and_a_figure(row: rows.Row) -> None:
    """`make bench` runs it, and the page shows what it told."""
    assert (ROOT / "bench" / f"{row.program}.py").is_file()
    assert row.program in programs.PROGRAMS
    assert row.tell(FIGURES["lines"][row.line]["figures"])
    assert row.verdict(FIGURES["lines"][row.line]) in {"yes", "**no**"}


def test_make_bench_runs_every_program() -> None:
    """A program that is not listed would never be run."""
    there = {path.stem for path in (ROOT / "bench").glob("*.py") if "def main(" in path.read_text()}
    assert there == set(programs.PROGRAMS)


def test_what_is_run_only_when_named_stays_on_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`make bench` measures the others anew; half an hour of soak is not thrown away, nor kept over a newer one."""
    monkeypatch.setattr(programs, "RESULTS", tmp_path)
    long, lasting = next(iter(programs.LONG)), {"bench": "old"}
    assert programs.collected({long: lasting, "nmi": lasting}) == {long: lasting}
    newer = {"bench": long, "figures": {}}
    (tmp_path / "told.json").write_text(json.dumps(newer))
    assert programs.collected({long: lasting}) == {long: newer}


def test_the_plots_are_there() -> None:
    """Each picture of the page is in the repository, without a date, so that the same figures give the same bytes."""
    pictures = re.findall(r"\]\((performance/[a-z]+\.svg)\)", PAGE)
    assert len(pictures) == 4
    for picture in pictures:
        assert "<dc:date>" not in (ROOT / "docs" / picture).read_text()


def test_a_row_that_is_over_says_so() -> None:
    """The verdict comes from the program's own line, and only from what the row is about."""
    row = next(row for row in rows.ROWS if row.limits == ("hung",))
    line = FIGURES["lines"][row.line]
    assert row.verdict(line | {"over": ["p99_hung_ms: 200 > 150"]}) == "**no**"
    assert row.verdict(line | {"over": ["p99_quiet_ms: 200 > 150"]}) == "yes"


def test_the_kernels_part_stands_beside_the_servers_own() -> None:
    """A ratio of the sums hides what no server can save; without such figures there is no table."""
    told = {
        f"{server}, known head": {"user_micros": {"median": 5.0}, "system_micros": {"median": 16.04}}
        for server in ("nmi", "go")
    }
    split = rows.cpu_split({"loopback, 250 pods": told, "redirect, 250 pods": {"nmi, known head": {}}})
    assert split == ["| loopback, its own | 5.0 | 5.0 | - |", "| loopback, the kernel's | 16.0 | 16.0 | - |"]
