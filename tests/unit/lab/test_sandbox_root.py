"""Which directories of this machine a container of the embedded lab gets."""

from pathlib import Path

from podidentity_lab.sandbox.root import readable_parts


def test_a_directory_of_its_owner_alone_is_mounted_by_its_contents(tmp_path: Path) -> None:
    """The contents of a directory that only its owner can read are mounted one by one.

    A container's user other than root could not pass the directory, such as a virtual environment below /root.
    """
    folder = tmp_path / "environment"
    for name in ("bin", "lib"):
        (folder / name).mkdir(parents=True)
    folder.chmod(0o755)
    assert readable_parts(folder) == (str(folder),)
    folder.chmod(0o700)
    assert readable_parts(folder) == (str(folder / "bin"), str(folder / "lib"))
