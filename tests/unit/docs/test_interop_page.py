"""The page of tried clients names the versions that are pinned, and no file of the clients names a registry."""

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]
PINS = REPOSITORY / "tests" / "interop"
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (REPOSITORY / "docs" / "interop.md").read_text().splitlines()
    if line.startswith("| ") and not line.startswith("| client ")
]


@pytest.mark.parametrize(
    ("client", "file", "form"),
    [
        ("azure-cli, in a pod", "az/requirements.txt", r"azure-cli==(\S+)"),
        ("azure-cli, on the host", "az/requirements.txt", r"azure-cli==(\S+)"),
        ("Python azure-identity", "python/requirements.txt", r"azure-identity==(\S+)"),
        ("Python azure-identity.aio", "python/requirements.txt", r"azure-identity==(\S+)"),
        ("Python msal", "python/requirements.txt", r"msal==(\S+)"),
        ("Python azure-mgmt-compute", "python/requirements.txt", r"azure-mgmt-compute==(\S+)"),
        ("Python azure-mgmt-msi", "python/requirements.txt", r"azure-mgmt-msi==(\S+)"),
        ("Python azure-mgmt-authorization", "python/requirements.txt", r"azure-mgmt-authorization==(\S+)"),
        ("JavaScript @azure/identity", "javascript/package.json", r'"@azure/identity": "([^"]+)"'),
        ("Go azidentity", "go/go.mod", r"sdk/azidentity v(\S+)"),
        ("Go go-autorest, NewAuthorizerFromEnvironment", "go-autorest/go.mod", r"autorest/azure/auth v(\S+)"),
        ("Java azure-identity", "java/pom.xml", r"<artifactId>azure-identity</artifactId>\s*<version>(.+?)</version>"),
    ],
)
def test_the_page_names_the_pinned_version(client: str, file: str, form: str) -> None:
    """The page shows the pinned version of each client, with tests that passed: a new pin needs a new run."""
    pinned = re.search(form, (PINS / file).read_text())
    shown = [row for row in ROWS if row[0] == client]
    assert pinned
    assert {row[1] for row in shown} == {pinned[1]}
    assert {row[3] for row in shown} == {"passed"}


def test_no_file_of_the_clients_names_a_registry() -> None:
    """Packages are named without a registry, so that the machine's own package managers decide where they come from."""
    files = [path for path in PINS.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    registries = re.compile(r"registry\.npmjs|pypi\.org|files\.pythonhosted|proxy\.golang|repo\d*\.maven|sum\.golang")
    assert [str(path) for path in files if registries.search(path.read_text(errors="replace"))] == []
    assert [path.name for path in files if path.name in {"package-lock.json", "yarn.lock"}] == []
