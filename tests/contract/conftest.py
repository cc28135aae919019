"""The servers that the contract's tests run against, a namespace for each test, and the real kubectl."""

import contextlib
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from contract.servers import embedded

START_SECONDS = 900  # a real cluster, on a busy machine
COMMAND_SECONDS = 60
CRDS = Path(__file__).parents[2] / "charts" / "aad-pod-identity" / "crds" / "crd.yaml"
_numbers = itertools.count()
Json = dict[str, Any]


class Kubectl:
    """The real kubectl against one server and one namespace."""

    def __init__(self, kubeconfig: Path, namespace: str) -> None:
        self.namespace = namespace
        self._program = shutil.which("kubectl") or str(Path(sys.executable).with_name("kubectl"))
        self._environment = {
            "KUBECONFIG": str(kubeconfig),
            "HOME": str(kubeconfig.parent),
            "PATH": os.environ.get("PATH", os.defpath),
        }

    def __call__(self, *arguments: str, stdin: Json | str = "") -> str:
        """Run a command that must succeed; return its output."""
        done = self.tried(*arguments, stdin=stdin)
        assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    def tried(self, *arguments: str, stdin: Json | str = "") -> subprocess.CompletedProcess[str]:
        """Run a command and return its result, whether or not it succeeded."""
        return subprocess.run(
            [self._program, "-n", self.namespace, *arguments],
            input=stdin if isinstance(stdin, str) else json.dumps(stdin),
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )

    def refused(self, *arguments: str, stdin: Json | str = "") -> str:
        """Run a command that must fail; return its error output."""
        done = self.tried(*arguments, stdin=stdin)
        assert done.returncode != 0, f"kubectl {' '.join(arguments)} succeeded: {done.stdout}"
        return done.stderr

    def get(self, *arguments: str) -> Json:
        """Return what `kubectl get ... -o json` prints."""
        found: Json = json.loads(self("get", *arguments, "-o", "json"))
        return found

    def raw(self, path: str) -> str:
        """Return the answer to a GET of a path; `{}` in it stands for the namespace."""
        return self("get", "--raw", path.replace("{}", self.namespace))


@pytest.fixture(scope="session", params=["embedded", "real"])
def kubeconfig(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The kubeconfig of each server in turn, with our CRDs installed."""
    with contextlib.ExitStack() as stack:
        if request.param == "embedded":
            path, _ = stack.enter_context(embedded(tmp_path_factory.mktemp("contract")))
        else:
            path = Path(request.getfixturevalue("cluster").lab.variables["KUBECONFIG"])
        kubectl = Kubectl(path, "default")
        kubectl("apply", "-f", str(CRDS))
        kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
        yield path


@pytest.fixture
def kubectl(kubeconfig: Path) -> Iterator[Kubectl]:
    """Kubectl in a namespace that is this test's alone."""
    name = f"contract-{next(_numbers)}"
    Kubectl(kubeconfig, "default")("create", "namespace", name)
    yield Kubectl(kubeconfig, name)
    Kubectl(kubeconfig, "default")("delete", "namespace", name, "--wait=false")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each test the time to start the cluster, because the first one that runs has to."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.timeout(START_SECONDS))
