"""Azure's SDKs in four languages, each in a new and an old version, and the program that asks with each.

The program's source is the same for both versions: `ManagedIdentityCredential` and `DefaultAzureCredential`, one JSON
object with what each was answered (managed.py).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from interop.clients import HERE


@dataclass(frozen=True, slots=True)
class Sdk:
    """A version of an SDK; `client` (in interop.clients) has it."""

    title: str
    version: str
    client: str
    command: Callable[[Path], list[str]]

    @property
    def is_newest(self) -> bool:
        """Whether it is the newest version: older ones refuse selectors, or do not look for them in the answer."""
        return "-" not in self.client


def _python(directory: Path) -> list[str]:
    return [str(directory / "bin/python"), "-c", (HERE / "managed/managed.py").read_text()]


def _javascript(_directory: Path) -> list[str]:
    return ["node", "--input-type=module", "--eval", (HERE / "managed/managed.mjs").read_text()]


def _go(directory: Path) -> list[str]:
    return [str(directory / "managed")]


def _java(directory: Path) -> list[str]:
    (archive,) = (directory / "build/target").glob("*-1.jar")
    return ["java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp", f"{archive}:{directory}/libs/*", "Managed"]


SDKS = (
    Sdk("Python azure-identity", "1.27.0", "python", _python),
    Sdk("Python azure-identity", "1.12.0", "python-2022", _python),
    Sdk("JavaScript @azure/identity", "4.14.1", "javascript", _javascript),
    Sdk("JavaScript @azure/identity", "2.1.0", "javascript-2022", _javascript),
    Sdk("Go azidentity", "1.15.0", "go", _go),
    Sdk("Go azidentity", "1.3.1", "go-2023", _go),
    Sdk("Java azure-identity", "1.19.0", "java", _java),
    Sdk("Java azure-identity", "1.6.1", "java-2022", _java),
)
