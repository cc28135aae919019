"""`make test` runs its lanes side by side, and succeeds only when all of them do."""

import sys
from pathlib import Path

import pytest
import suite


def lane(name: str, status: int, text: str, file: str = "") -> suite.Lane:
    """Return a lane that says something and ends."""
    return suite.Lane(name, (sys.executable, "-c", f"print({text!r}); raise SystemExit({status})"), file)


@pytest.mark.parametrize("statuses", [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (5, 2, 1)])
@pytest.mark.parametrize("cores", [1, 2])
def test_a_failure_in_any_lane_is_one(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    statuses: tuple[int, int, int],
    cores: int,
) -> None:
    """A failure of any lane fails the run, with one core or several; the outputs of all lanes are printed."""
    lanes = (
        lane("on the real cluster", statuses[0], "=== 3 passed, 1 skipped in 2.10s (0:00:02) ===", "cluster.txt"),
        lane("with whole programs", statuses[1], "2 passed in 1.00s", "programs.txt"),
        lane("all others", statuses[2], "7 passed in 1.00s"),
    )
    for name, value in {
        "ROOT": tmp_path,
        "OUTPUTS": tmp_path / "build",
        "LANES": lanes,
        "CLIENTS": (sys.executable, "-c", ""),
        "cores": lambda: cores,
    }.items():
        monkeypatch.setattr(suite, name, value)
    assert suite.main() == int(any(statuses))
    printed = capfd.readouterr().out
    assert "7 passed in 1.00s\n" in printed
    assert "\non the real cluster: 3 passed, 1 skipped in 2.10s (0:00:02)\nwith whole programs: 2 passed in " in printed


def test_a_lane_that_came_to_no_end_is_told() -> None:
    """The output of a lane that was killed, or started no test, is reported as such."""
    assert suite.summary("SKIPPED: a real cluster needs root\n....") == "the tests did not come to an end"
    assert suite.summary("") == "the tests did not come to an end"


def test_no_folder_is_left_out() -> None:
    """Each folder of a lane exists, and the last lane runs all other folders."""
    *in_folders, others = suite.LANES
    folders = [*suite.CLUSTER_FOLDERS, *suite.PROGRAM_FOLDERS]
    assert all(Path(suite.ROOT, folder).is_dir() for folder in folders)
    assert all(any(folder in " ".join(one.command) for one in in_folders) for folder in folders)
    assert [word for word in others.command if word.startswith("--ignore")] == [f"--ignore={one}" for one in folders]
