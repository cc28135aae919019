"""`make test` runs its lanes side by side, and is good only when both are."""

import sys
from pathlib import Path

import pytest
import suite


def lane(status: int, said: str) -> tuple[str, ...]:
    """A lane that says something and ends."""
    return (sys.executable, "-c", f"print({said!r}); raise SystemExit({status})")


@pytest.mark.parametrize("statuses", [(0, 0), (1, 0), (0, 1), (5, 2)])
@pytest.mark.parametrize("cores", [1, 2])
def test_a_failure_in_either_lane_is_one(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    statuses: tuple[int, int],
    cores: int,
) -> None:
    """With one core or several; and what the cluster's lane said is told at the end."""
    told = tmp_path / "build" / "told.txt"
    for name, value in {
        "ROOT": tmp_path,
        "TOLD": told,
        "ON_THE_CLUSTER": lane(statuses[0], "=== 3 passed, 1 skipped in 2.10s (0:00:02) ==="),
        "OTHERS": lane(statuses[1], "7 passed in 1.00s"),
        "CLIENTS": lane(0, ""),
        "cores": lambda: cores,
    }.items():
        monkeypatch.setattr(suite, name, value)
    assert suite.main() == int(any(statuses))
    printed = capfd.readouterr().out
    assert "7 passed in 1.00s\n" in printed
    assert "on the real cluster: 3 passed, 1 skipped in 2.10s (0:00:02). All tests took " in printed


def test_a_lane_that_came_to_no_end_is_told() -> None:
    """It was killed, or never started a test."""
    assert suite.summary("SKIPPED: a real cluster needs root\n....") == "the tests did not come to an end"
    assert suite.summary("") == "the tests did not come to an end"


def test_no_folder_is_left_out() -> None:
    """A folder is in one lane or in the other; one that was renamed would be in neither."""
    assert all(Path(suite.ROOT, folder).is_dir() for folder in suite.FOLDERS)
    assert [word for word in suite.OTHERS if word.startswith("-")] == [
        "-n",
        "-m",
        "-q",
        *(f"--ignore={one}" for one in suite.FOLDERS),
    ]
