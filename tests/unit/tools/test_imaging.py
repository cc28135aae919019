"""An image contains nothing that depends on the machine that made it."""

from pathlib import Path

from imaging import debian, python


def test_no_list_of_a_package_names_a_program_that_is_left_out(tmp_path: Path) -> None:
    """Programs that are left out are removed from a package's RECORD.

    Their digest depends on the path of pip's Python, so that each checkout would make another image.
    """
    record = tmp_path / "a-1.dist-info" / "RECORD"
    record.parent.mkdir()
    record.write_text("a/__init__.py,sha256=x,1\n../../bin/a,sha256=y,2\na-1.dist-info/RECORD,,\n")
    python.remove_program_records(tmp_path)
    assert record.read_text() == "a/__init__.py,sha256=x,1\na-1.dist-info/RECORD,,\n"


def test_no_filter_lets_a_shell_or_a_package_manager_in() -> None:
    """The filter names each program, so that a package's new programs stay out."""
    lines = debian.PATHS.read_text().splitlines()
    programs = [line for line in lines if line.startswith("path-include=") and "bin/" in line]
    assert [line.rsplit("/", 1)[1] for line in programs] == ["python3.*", "nft", "conntrack", "ip", "sleep", "tini"]
    assert lines[1] == "path-exclude=/*"
