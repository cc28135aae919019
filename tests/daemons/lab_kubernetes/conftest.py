"""The embedded Kubernetes behind real TLS on loopback, and the real kubectl."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from contract.servers import embedded
from podidentity_lab.kubernetes import Kubernetes

Kubectl = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def kubernetes(tmp_path: Path) -> Iterator[Kubernetes]:
    """A served cluster; its kubeconfig lies in `tmp_path`."""
    with embedded(tmp_path) as (_, cluster):
        yield cluster


@pytest.fixture
def kubectl(kubernetes: Kubernetes, tmp_path: Path) -> Kubectl:
    """Run kubectl of the pinned package, which is newer than most machines' own; labs of other tests use PATH's."""
    assert kubernetes.admin_token
    program = str(Path(sys.executable).with_name("kubectl"))
    environment = {"KUBECONFIG": str(tmp_path / "kubeconfig"), "HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}

    def run(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [program, *arguments], input=stdin, env=environment, capture_output=True, text=True, timeout=60, check=False
        )

    return run
