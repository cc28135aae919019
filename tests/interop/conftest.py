"""One lab for the session, clients that are installed when a test needs them, and a table of what each did."""

import json
import os
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from interop import clients
from interop.stage import ROOT, Record, Stage, started

RESULTS = ROOT / "build" / "interop.json"
_ROWS: list[dict[str, str]] = []


@pytest.fixture(scope="session")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """The lab of all interop tests."""
    with started(tmp_path_factory.mktemp("lab")) as made:
        yield made


@pytest.fixture(scope="session")
def client() -> Callable[[str], Path]:
    """Return a function that installs a client; without its tools the test is skipped, or fails where CI is set."""

    def client(name: str) -> Path:
        try:
            return clients.installed(name)
        except clients.MissingToolError as error:
            if os.environ.get("CI"):
                pytest.fail(str(error))
            pytest.skip(str(error))

    return client


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Record:
    """Return a function that adds a row to docs/interop.md: client, version, what it did; the result is the test's."""

    def record(name: str, version: str, did: str) -> None:
        _ROWS.append({"client": name, "version": version, "did": did, "test": request.node.nodeid})

    return record


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Write a test's result into its rows."""
    report = yield
    if report.when == "call":
        for row in _ROWS:
            if row["test"] == item.nodeid:
                row["result"] = report.outcome
    return report


def pytest_sessionfinish() -> None:
    """Write each test's last results, for `tools/interop_page.py`: a run of some tests leaves the others' rows."""
    if not _ROWS:
        return
    RESULTS.parent.mkdir(exist_ok=True)
    before = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    again = {row["test"] for row in _ROWS}
    kept = [row for row in before if row["test"] not in again]
    RESULTS.write_text(json.dumps([*kept, *_ROWS], indent=1) + "\n")
