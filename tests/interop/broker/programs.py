"""The SDKs' programs as processes: each in its own language, each with all its settings in the environment."""

import json
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

from interop.clients import HERE

Answer = dict[str, Any]
_MAVEN = {"m": "http://maven.apache.org/POM/4.0.0"}


@dataclass(frozen=True, slots=True)
class Sdk:
    """An SDK whose `WorkloadIdentityCredential` can use a token proxy; `client` (in interop.clients) has its program.

    `command` needs nothing but the client's directory, which is also its working directory: pods do not see the tests.
    """

    title: str
    client: str
    command: Callable[[Path], list[str]]
    version: Callable[[], str]


def _python(kind: str) -> Callable[[Path], list[str]]:
    program = (HERE / "python/workload.py").read_text()
    return lambda directory: [str(directory / "bin/python"), "-c", program, kind]


def _javascript(_directory: Path) -> list[str]:
    # As text: Node looks for packages beside a program's file, and for those of a text in the working directory.
    return ["node", "--input-type=module", "--eval", (HERE / "javascript/workload.mjs").read_text()]


def _java(directory: Path) -> list[str]:
    classes = f"{directory}/build/target/interop-1.jar:{directory}/libs/*"
    return ["java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp", classes, "Workload"]


def _line_after(file: str, text: str) -> Callable[[], str]:
    """Return a function that reads the word after a text in a file of pinned versions."""
    return lambda: (HERE / file).read_text().partition(text)[2].split()[0].strip('",')


def _java_version() -> str:
    pom = ET.parse(HERE / "java/pom.xml").getroot()  # noqa: S314  # our own file
    dependencies = pom.findall("m:dependencies/m:dependency", _MAVEN)
    versions = {one.findtext("m:artifactId", "", _MAVEN): one.findtext("m:version", "", _MAVEN) for one in dependencies}
    return versions["azure-identity"]


_PYTHON_VERSION = _line_after("python/constraints.txt", "azure-identity==")
SDKS = (
    Sdk("Python azure-identity", "python", _python("sync"), _PYTHON_VERSION),
    Sdk("Python azure-identity.aio", "python", _python("aio"), _PYTHON_VERSION),
    Sdk(
        "Go azidentity",
        "go",
        lambda directory: [str(directory / "workload")],
        _line_after("go/go.mod", "sdk/azidentity v"),
    ),
    Sdk(
        "JavaScript @azure/identity",
        "javascript",
        _javascript,
        _line_after("javascript/package.json", '@azure/identity":'),
    ),
    Sdk("Java azure-identity", "java", _java, _java_version),
)


class Program:
    """A program that answers one request after the other; what it writes to stderr goes to a file."""

    def __init__(self, sdk: Sdk, directory: Path, environment: Mapping[str, str], errors: Path) -> None:
        self.title = sdk.title
        with errors.open("ab") as stderr:
            self._process = subprocess.Popen(
                sdk.command(directory),
                cwd=directory,
                env=dict(environment),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        self._errors = errors

    def begin(self, **request: Any) -> None:
        """Send a request, as tests/interop/python/workload.py describes it."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()

    def end(self) -> Answer:
        """Return the answer to the request that was sent last."""
        assert self._process.stdout
        line = self._process.stdout.readline()
        assert line, f"{self.title} ended: {self._errors.read_text()[-3000:]}"
        answer: Answer = json.loads(line)
        return answer

    def ask(self, **request: Any) -> Answer:
        """Send a request and return its answer."""
        self.begin(**request)
        return self.end()

    def close(self) -> None:
        """End the program."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe
            pipe.close()


def ask_all(programs: Mapping[str, Program], **request: Any) -> dict[str, Answer]:
    """Ask with all programs at the same time."""
    for program in programs.values():
        program.begin(**request)
    return {title: program.end() for title, program in programs.items()}
