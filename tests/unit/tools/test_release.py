"""Versions as packages, images and charts spell them, and archives that depend on their contents alone."""

from pathlib import Path

import pytest
from artifacts import archives, checkout


@pytest.mark.parametrize(
    ("version", "semantic"),
    [("2.0.0", "2.0.0"), ("2.0.0rc1", "2.0.0-rc.1"), ("2.1.0a3", "2.1.0-alpha.3"), ("2.0.0.dev0", "2.0.0-dev.0")],
)
def test_a_version_has_one_semantic_spelling(version: str, semantic: str) -> None:
    """Python's spelling of a version becomes the semantic one, which charts require."""
    assert checkout.semantic(version) == semantic


@pytest.mark.parametrize("version", ["2.0", "2.0.0.post1", "1!2.0.0", "2.0.0+local"])
def test_a_version_that_images_cannot_have_is_refused(version: str) -> None:
    """A version without a semantic spelling is refused: no registry takes it as a tag."""
    with pytest.raises(SystemExit, match="images and charts cannot have it"):
        checkout.semantic(version)


def test_an_archive_depends_on_its_contents_alone(tmp_path: Path) -> None:
    """The order in which files are given does not change the archive, and reading it returns the files."""
    files = {"b/two": b"2", "a": b"1"}
    one = archives.write(files, tmp_path / "one.tgz", 1_700_000_000)
    other = archives.write(dict(reversed(files.items())), tmp_path / "other.tgz", 1_700_000_000)
    assert one.read_bytes() == other.read_bytes()
    assert archives.read(one) == files
