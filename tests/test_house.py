"""Sizes and names that keep files readable, and documents that agree with the code.

Linters check the rest (pyproject.toml).
"""

import ast
import statistics
from collections.abc import Iterator
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
    """Return all functions of a file, nested ones included."""
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, Function)]


def length(function: Function) -> int:
    """Return the number of lines from `def` to the end."""
    return (function.end_lineno or function.lineno) - function.lineno + 1


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_stay_small(path: Path) -> None:
    """A file has at most 400 lines and a function at most 50."""
    assert len(path.read_text().splitlines()) <= FILE_LINES
    assert [function.name for function in functions(path) if length(function) > FUNCTION_LINES] == []


def test_half_of_all_functions_fit_in_ten_lines() -> None:
    """The median function has at most ten lines."""
    assert (
        statistics.median(length(function) for path in SOURCES for function in functions(path)) <= MEDIAN_FUNCTION_LINES
    )


def test_no_module_has_a_vague_name() -> None:
    """A module's name says what it is about."""
    assert [path for path in SOURCES if path.stem in VAGUE_NAMES] == []


def test_every_make_target_of_the_readme_exists() -> None:
    """Every `make` command in README is a target of the Makefile."""
    makefile = (ROOT / "Makefile").read_text()
    named = {
        word.strip("`.,") for word in (ROOT / "README.md").read_text().split("make ")[1:] for word in [word.split()[0]]
    }
    assert {name for name in named if name.isalpha() and f"\n{name}:" not in makefile} == set()


def test_the_changelog_names_the_version() -> None:
    """CHANGELOG has an entry for the version."""
    version = (ROOT / "pyproject.toml").read_text().split('version = "', 1)[1].split('"', 1)[0]
    assert version in (ROOT / "CHANGELOG.md").read_text()


VAGUE_BINDINGS = frozenset(
    """
    told found asked made given kept held known shown wanted put seen taken left said named written assigned listed
    started stored skipped opened ended began begun chosen done failed refused cut gone granted measured served sent
    got had looked heard drawn filled counted dropped needed accepted removed replaced changed created loaded
    fetched built used understood answered carried remembered expected parsed allowed quoted leaked wrote called
    saved planned involved keyed wished mistaken waited placed shared become lost inherited settled deleted existing
    paired merged released recovered promised proven unproven unplugged replugged explained lowered denied tainted
    fed brought come went untold unseen lacking due renewed confirmed one ones there here what why where who whom
    whose others ours mine theirs own all every everything each nothing nobody somebody everybody whole rest such
    same more most again before after beside besides below behind around about but over ahead apart elsewhere
    together within near soon never alike at of
    """.split()  # noqa: SIM905  # words are read as words
)
"""Participles and pronouns: a name is the noun of the thing. Found in code, they had up to fifteen meanings each."""
NAMED_SOURCES = sorted(
    path
    for root in ("src", "lab/src", "tools", "bench")
    for path in (ROOT / root).rglob("*.py")
    if "data" not in path.relative_to(ROOT).parts
)


def bindings(path: Path) -> Iterator[tuple[str, int]]:
    """Yield each name that a file binds, with its line: variables, parameters, attributes, functions, classes."""
    tree = ast.parse(path.read_text())
    wire_words = {node.targets[0] for node in ast.walk(tree) if isinstance(node, ast.Assign) and is_wire_word(node)}
    for node in ast.walk(tree):
        if node in wire_words:
            continue
        match node:
            case ast.arg(arg=name) | ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                yield name, node.lineno
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name, node.lineno
            case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                yield name, node.lineno
            case ast.alias(asname=str(name)):
                yield name, node.lineno


def is_wire_word(node: ast.AST) -> bool:
    """Whether a node binds a name to the same word as a text: a member of an enumeration of what others define."""
    return (
        isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.targets[0], ast.Name)
        and str(node.value.value).lower() == node.targets[0].id.lower()
    )


@pytest.mark.parametrize("path", NAMED_SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_name_is_the_noun_of_the_thing(path: Path) -> None:
    """No binding is a bare participle or pronoun, except names that Python itself defines (`__all__`)."""
    names = [(name, line) for name, line in bindings(path) if not (name.startswith("__") and name.endswith("__"))]
    vague = [f"{name}, line {line}" for name, line in names if name.strip("_").lower() in VAGUE_BINDINGS]
    assert vague == []


EVENT_LOOPS = {
    "cluster/admissions.py": "asks from the side of a cluster's test, which waits for kubectl",
    "daemons/mic/jumping.py": "a loop whose clock jumps",
    "daemons/nmi/test_anti_spoof.py": "a loop whose clock jumps",
    "interop/broker/stage.py": "a thread's loop",
    "interop/python/reader.py": "a program of its own",
    "interop/python/workload.py": "a program of its own",
    "interop/sdks/ask.py": "a program of its own",
    "serving.py": "a thread's loop",
    "system/load/patient.py": "a program of its own",
    "system/load/soaking.py": "a thread in a pod's network namespace",
    "system/redirect/acting.py": "a thread in a node's network namespace",
    "system/redirect/background.py": "a thread in a node's network namespace",
    "system/redirect/test_broker_vanishes.py": "a thread in a network namespace",
    "system/redirect/test_host.py": "a thread in a host's network namespace",
    "system/redirect/test_redirect.py": "a thread in a node's network namespace",
    "system/redirect/test_uplinks.py": "a thread in a node's network namespace",
    "tunnel.py": "a thread's loop",
}
"""The files of tests that start an event loop themselves, each with the reason; all other tests are coroutines."""


def test_only_what_runs_elsewhere_starts_an_event_loop() -> None:
    """A test that waits is an `async def`: tests/conftest.py and tests/loops.py say on which loop it runs."""
    tests = ROOT / "tests"
    files = {
        str(path.relative_to(tests))
        for path in tests.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and ast.unparse(node)
        in {
            "asyncio.run",
            "asyncio.Runner",
            "asyncio.new_event_loop",
            "uvloop.run",
            "uvloop.new_event_loop",
            "anyio.run",
        }
    }
    assert files == EVENT_LOOPS.keys()
