"""On which Pythons `make check` runs besides the developer's."""

from pathlib import Path

import pytest
import pythons

DEBIAN, OTHER, NEW = (3, 11, 2), (3, 11, 7), (3, 14, 1)
HERE: dict[pythons.Version, Path] = {
    version: Path("/bin", pythons.version_text(version)) for version in (DEBIAN, OTHER, (3, 12, 1), NEW)
}


@pytest.mark.parametrize(
    ("own", "chosen"), [(OTHER, {DEBIAN, NEW}), (DEBIAN, {NEW}), (NEW, {DEBIAN}), ((3, 12, 1), {DEBIAN, NEW})]
)
def test_it_is_the_images_own_and_the_newest(own: pythons.Version, chosen: set[pythons.Version]) -> None:
    """The image's own and the newest Python are chosen, except the one that runs already."""
    assert pythons.choose(HERE, own) == ({version: HERE[version] for version in chosen}, [])


def test_a_python_that_is_missing_is_named() -> None:
    """For each Python that is missing there is a sentence, so that nobody overrates the check."""
    chosen, missing = pythons.choose({(3, 12, 1): Path("/bin/p")}, OTHER)
    assert list(chosen) == [(3, 12, 1)]
    assert [sentence.split(":")[0] for sentence in missing] == ["Python 3.11.2", "Python 3.14"]
    assert "3.12.1 is its newest" in missing[1]


def test_this_machine_s_pythons_are_found() -> None:
    """Pythons are found by the version that each one reports; virtual environments of this checkout are left out."""
    found = pythons.installed_pythons()
    assert found
    assert all(pythons.OLDEST <= version[:2] <= pythons.NEWEST for version in found)
    assert not [path for path in found.values() if pythons.ROOT in path.parents]
