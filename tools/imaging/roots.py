"""The parts of podidentity's image: what each is made of, and how."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from imaging import debian, python

Make = Callable[[Path], None]
"""Makes a part below a root."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part of an image: `sources` are the files that decide what it is."""

    name: str
    make: Make
    sources: tuple[Path, ...]


def parts(repository: Path, system: Path) -> tuple[Part, ...]:
    """Return the parts of podidentity's image, the lowest first. `system` is the root where the first is made."""
    tools, project = repository / "tools/imaging", repository / "pyproject.toml"

    def make_system(root: Path) -> None:
        debian.make_root(root)
        python.byte_compile(root, root, [f"usr/lib/python{debian.PYTHON}"])

    def make_dependencies(root: Path) -> None:
        python.install(python.project(repository)["project"]["dependencies"], repository, root / python.PACKAGES)
        python.byte_compile(system, root, [python.PACKAGES])

    def make_podidentity(root: Path) -> None:
        python.install_podidentity(repository, root)
        python.byte_compile(system, root, [f"{python.PACKAGES}/podidentity"])

    pip = (tools / "debian.py", tools / "python.py", tools / "roots.py", project)
    return (
        Part("system", make_system, (tools / "debian.py", debian.PATHS, tools / "python.py", tools / "roots.py")),
        Part("dependencies", make_dependencies, (*pip, repository / "constraints.txt")),
        Part("podidentity", make_podidentity, (*pip, repository / "README.md", *_sources(repository / "src"))),
    )


def _sources(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
