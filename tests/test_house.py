"""Sizes that keep files readable, and documents that stay in step. Linters hold the rest (pyproject.toml)."""

import ast
import statistics
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "src").rglob("*.py"))
FILE_LINES = 400
FUNCTION_LINES = 50
MEDIAN_FUNCTION_LINES = 10
VAGUE_NAMES = {"utils", "helpers", "common", "manager"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(path: Path) -> list[Function]:
    """All functions of a file, nested ones included."""
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, Function)]


def length(function: Function) -> int:
    """Lines from `def` to the end."""
    return (function.end_lineno or function.lineno) - function.lineno + 1


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_stay_small(path: Path) -> None:
    """A file over 400 lines or a function over 50 asks to be split."""
    assert len(path.read_text().splitlines()) <= FILE_LINES
    assert [function.name for function in functions(path) if length(function) > FUNCTION_LINES] == []


def test_half_of_all_functions_fit_in_ten_lines() -> None:
    """Small pieces: the median function has at most ten lines."""
    assert (
        statistics.median(length(function) for path in SOURCES for function in functions(path)) <= MEDIAN_FUNCTION_LINES
    )


def test_no_module_has_a_vague_name() -> None:
    """A module says what it is about."""
    assert [path for path in SOURCES if path.stem in VAGUE_NAMES] == []


def test_every_make_target_of_the_readme_exists() -> None:
    """The commands a newcomer is told are there."""
    makefile = (ROOT / "Makefile").read_text()
    named = {
        word.strip("`.,") for word in (ROOT / "README.md").read_text().split("make ")[1:] for word in [word.split()[0]]
    }
    assert {name for name in named if name.isalpha() and f"\n{name}:" not in makefile} == set()


def test_the_changelog_names_the_version() -> None:
    """A release has an entry."""
    version = (ROOT / "pyproject.toml").read_text().split('version = "', 1)[1].split('"', 1)[0]
    assert version in (ROOT / "CHANGELOG.md").read_text()
