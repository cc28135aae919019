"""Documents agree with the code: links lead somewhere, tests that they name exist, the flag reference is up to date."""

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]
PAGES = sorted(
    [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md"), *(REPOSITORY / "examples").rglob("*.md")]
)
LINK = re.compile(r"\]\(([^)#\s]+)\)")
NAMED_TEST = re.compile(r"`(tests/[\w/]+\.py)?::(\w+)`")
NAMED_PAGE = re.compile(r"docs/[\w/-]+\.md")


@functools.cache
def functions_of(path: Path) -> frozenset[str]:
    """Return the names of the test functions of a file."""
    tree = ast.parse(path.read_text()) if path.is_file() else ast.Module([], [])
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, kinds))


def named_tests(text: str) -> Iterator[tuple[str, str]]:
    """Yield each `file::test` of a page; a test without a file belongs to the file before it."""
    file = ""
    for found in NAMED_TEST.finditer(text):
        file = found[1] or file
        yield file, found[2]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link names a file that exists."""
    links = [link for link in LINK.findall(page.read_text()) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_tests_that_a_page_names_exist(page: Path) -> None:
    """A test that a page names as proof exists."""
    named = named_tests(page.read_text())
    assert [(file, test) for file, test in named if test not in functions_of(REPOSITORY / file)] == []


def test_every_row_of_the_threat_model_names_a_test() -> None:
    """Every row of the threat model names a test."""
    rows = [line for line in (REPOSITORY / "THREAT_MODEL.md").read_text().splitlines() if line.startswith("| ")]
    assert len(rows) > 1
    assert [row for row in rows[1:] if "`tests/" not in row] == []


def test_pages_that_the_program_names_exist() -> None:
    """A page that an error message names exists."""
    sources = [*(REPOSITORY / "src").rglob("*.py"), *(REPOSITORY / "tools").rglob("*.py")]
    named = {page for source in sources for page in NAMED_PAGE.findall(source.read_text())}
    assert named
    assert {page for page in named if not (REPOSITORY / page).is_file()} == set()


def test_the_flag_reference_is_fresh() -> None:
    """The page has the flags that the daemons read."""
    command = [sys.executable, str(REPOSITORY / "tools" / "reference.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_field_of_azure_json_is_documented() -> None:
    """Each field of azure.json and each variable that MIC reads has a row on the page."""
    page = (REPOSITORY / "docs" / "configure" / "azure-json.md").read_text()
    source = (REPOSITORY / "src" / "podidentity" / "azure" / "cloud_config.py").read_text()
    named = dict(re.findall(r'^    "(\w+)": "([A-Z_]+)",$', source, re.MULTILINE))
    assert len(named) >= 9
    assert {word for pair in named.items() for word in pair if f"`{word}`" not in page} == set()


def test_the_start_up_taint_has_one_key() -> None:
    """All pages spell the key of the start-up taint as NMI does.

    Otherwise a node would join with a taint that NMI does not remove.
    """
    keys = {key for page in PAGES for key in re.findall(r"[\w.-]+/starting\b", page.read_text())}
    assert keys == {"podidentity.io/starting"}


@pytest.mark.parametrize("source", ["src/podidentity", "lab/src/podidentity_lab"])
def test_the_architecture_has_each_module(source: str) -> None:
    """ARCHITECTURE.md has a line for every module, below its package, and none for a module that is gone."""
    folder = REPOSITORY / source
    modules = {
        (".".join(path.parent.relative_to(folder.parent).parts), path.stem)
        for path in folder.rglob("*.py")
        if path.name != "__init__.py"
    }
    listed = set()
    for section in (REPOSITORY / "ARCHITECTURE.md").read_text().split("\n### `")[1:]:
        package = section.partition("`")[0]
        listed |= {(package, module) for module in re.findall(r"^\| `(\w+)` \| \S", section, re.MULTILINE)}
    assert modules
    assert {(package, module) for package, module in listed if package.partition(".")[0] == folder.name} == modules


def test_the_architecture_names_files_that_exist() -> None:
    """Every file that the text names exists."""
    text = (REPOSITORY / "ARCHITECTURE.md").read_text().partition("## Every module")[0]
    sources = [REPOSITORY / "src/podidentity", REPOSITORY / "lab/src/podidentity_lab"]
    files = [f"/{path.relative_to(source)}" for source in sources for path in source.rglob("*.py")]
    files += [f"/{path.relative_to(REPOSITORY)}" for path in (REPOSITORY / "tests").rglob("test_*.py")]
    named = re.findall(r"[\w/]+\.py", text)
    assert named
    assert [name for name in named if not any(file.endswith(f"/{name}") for file in files)] == []
