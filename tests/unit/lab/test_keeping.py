"""Files that a lab is kept in: what is no plain file is neither replaced nor read."""

import os
from pathlib import Path

import pytest

from podidentity.errors import LabError
from podidentity_lab import keeping


@pytest.mark.parametrize("name", ["pipe", "link", "folder", "", "/", "a" * 300])
def test_only_a_plain_file_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """As root, a lab that is saved to /dev/null would otherwise take its place, for every program of the machine."""
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    Path("link").symlink_to("pipe")
    Path("folder").mkdir()
    with pytest.raises(LabError, match=r"(no plain file|too long); name a file that can be written"):
        keeping.check_target(Path(name))
    Path("plain").touch()
    keeping.check_target(Path("plain"))
    keeping.check_target(Path("new"))


@pytest.mark.parametrize("name", ["pipe", "link"])
def test_a_pipe_is_not_waited_for(tmp_path: Path, name: str) -> None:
    """`--state` names a file: a pipe may never be written to, and a device may have no end."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    with pytest.raises(LabError, match="it is no plain file; name one that `podidentity lab save` wrote"):
        keeping.open_state(tmp_path / name)
