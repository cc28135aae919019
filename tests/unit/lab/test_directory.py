"""The home of labs: nothing in it that is not a lab's is ever touched."""

from pathlib import Path

import pytest

from podidentity.errors import LabError
from podidentity_lab import directory


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of this user alone, set as the home of labs."""
    place = tmp_path / "home"
    place.mkdir(mode=0o700)
    monkeypatch.setenv("PODIDENTITY_LAB_HOME", str(place))
    return place


def test_a_directory_with_other_things_is_refused_and_stays(home: Path) -> None:
    """A directory with other things is not used: what is in it would be removed like a lab that crashed."""
    precious = home / "documents/thesis.txt"
    precious.parent.mkdir()
    precious.write_text("years of work")
    with pytest.raises(LabError, match="is not a directory of labs: something else is in it"):
        directory.all_labs()
    with pytest.raises(LabError, match="does not exist yet"), directory.claimed("one"):
        pass
    assert precious.read_text() == "years of work"
    assert [path.name for path in home.iterdir()] == ["documents"]


def test_a_lock_of_something_else_is_no_sign_of_labs(home: Path) -> None:
    """A `.lock` with other contents does not make a directory a home of labs."""
    (home / ".lock").write_text("4711")
    (home / "documents").mkdir()
    with pytest.raises(LabError, match="is not a directory of labs"):
        directory.all_labs()
    assert (home / ".lock").read_text() == "4711"
    assert (home / "documents").is_dir()


def test_a_directory_of_the_system_is_refused_without_advice_to_remove_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The refusal of /etc does not say to remove it or change its mode: root might do so."""
    monkeypatch.setenv("PODIDENTITY_LAB_HOME", "/etc")
    with pytest.raises(LabError) as refusal:
        directory.all_labs()
    assert "/etc is not a directory of yours alone" in str(refusal.value)
    assert "remove" not in str(refusal.value).lower()
    assert "chmod" not in str(refusal.value)


def test_what_a_crashed_lab_left_is_removed(home: Path) -> None:
    """In a home of labs, the directory of a lab that crashed is removed."""
    assert directory.all_labs() == ()
    (home / "crashed/logs").mkdir(parents=True)
    assert directory.all_labs() == ()
    assert [path.name for path in home.iterdir()] == [".lock"]
