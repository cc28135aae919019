"""Wheels and source archives of both distributions, by the build backend that their pyproject.toml names."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from artifacts.checkout import Checkout

DISTRIBUTIONS = {"podidentity": ".", "podidentity_lab": "lab"}
"""Each distribution, as its files' names begin, and its folder."""


def build(checkout: Checkout, target: Path) -> Iterator[Path]:
    """Build both formats of each distribution; hatchling takes every time in them from SOURCE_DATE_EPOCH."""
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(checkout.epoch)}
    for name, folder in DISTRIBUTIONS.items():
        command = [sys.executable, "-m", "hatchling", "build", "--directory", str(target)]
        subprocess.run(command, cwd=checkout.root / folder, env=environment, check=True, stdout=subprocess.DEVNULL)
        yield target / f"{name}-{checkout.version}.tar.gz"
        yield target / f"{name}-{checkout.version}-py3-none-any.whl"
