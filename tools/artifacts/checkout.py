"""Which release a checkout is: a clean tree, at the tag of the version that its files name."""

import re
import subprocess
import tomllib
from dataclasses import dataclass
from pathlib import Path

_SEMANTIC = {"a": "alpha", "b": "beta", "rc": "rc"}


@dataclass(frozen=True, slots=True)
class Checkout:
    """`version` as Python packages spell it; `epoch`, the time of the commit in seconds, is the time of every file."""

    root: Path
    version: str
    epoch: int

    @property
    def semantic_version(self) -> str:
        """The version as images and charts spell it: 2.0.0-rc.1."""
        return semantic(self.version)


def read(root: Path) -> Checkout:
    """Return the release that the checkout `root` is. Raise `SystemExit` where it is none."""
    changes = _git(root, "status", "--porcelain")
    if changes:
        raise SystemExit(
            f"{root}: it has changes ({changes.splitlines()[0].strip()}); commit them, or use a fresh clone"
        )
    version = str(tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"])
    tags = _git(root, "tag", "--points-at", "HEAD").split()
    if f"v{version}" not in tags:
        raise SystemExit(
            f"{root}: its commit has no tag v{version}, the version of pyproject.toml; set it with git tag"
        )
    return Checkout(root, version, int(_git(root, "log", "-1", "--format=%ct")))


def semantic(version: str) -> str:
    """Return a version of PEP 440 as a semantic version: 2.0.0rc1 is 2.0.0-rc.1. Raise `SystemExit` for other forms."""
    match = re.fullmatch(r"(\d+\.\d+\.\d+)(?:\.(dev)(\d+)|(a|b|rc)(\d+))?", version)
    if match is None:
        raise SystemExit(
            f"version {version}: images and charts cannot have it; use for example 2.0.0, 2.0.0rc1 or 2.0.0.dev0"
        )
    number, development, development_number, stage, stage_number = match.groups()
    if development:
        return f"{number}-dev.{development_number}"
    return f"{number}-{_SEMANTIC[stage]}.{stage_number}" if stage else number


def _git(root: Path, *words: str) -> str:
    return subprocess.run(["git", "-C", root, *words], capture_output=True, text=True, check=True).stdout.strip()
