"""The sample application as a process: Azure's unchanged libraries against a stand-in with real HTTP and TLS."""

import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from unit.examples.azure_standin import Azure, azure

EXAMPLE = Path(__file__).parents[3] / "examples" / "keyvault-app"
NAMES = {"AZURE_KEYVAULT_NAME": "keyvaultk8s", "AZURE_KEYVAULT_SECRET_NAME": "mySecret", "PORT": "0"}


@pytest.fixture(name="standin")
def _standin(tmp_path: Path) -> Iterator[Azure]:
    with azure(tmp_path) as standin:
        yield standin


@contextmanager
def app(environment: Mapping[str, str]) -> Iterator[str]:
    """Run the application as a process and yield its URL; it must end at once, with status 0, on SIGTERM."""
    process = _start(environment)
    try:
        assert process.stdout is not None
        found = re.search(r"on port (\d+)", process.stdout.readline())
        assert found is not None
        yield f"http://127.0.0.1:{found[1]}"
        process.terminate()
        assert process.wait(timeout=10) == 0
    finally:
        process.kill()
        process.communicate()


def _start(environment: Mapping[str, str]) -> subprocess.Popen[str]:
    whole = {"PATH": os.environ["PATH"], **environment}
    command = [sys.executable, "-m", "keyvault_app"]
    return subprocess.Popen(command, cwd=EXAMPLE, env=whole, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def fetch(url: str) -> tuple[int, str]:
    """Return status and text."""
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310  loopback, http
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_keyvault_answers_the_value_of_the_secret(standin: Azure) -> None:
    """The page is the secret's value and nothing else, read with the token that IMDS gave."""
    standin.secrets["mySecret/"] = "Don't tell"
    with app({**NAMES, **standin.environment()}) as url:
        assert fetch(f"{url}/keyvault") == (200, "Don't tell")
    assert any(path.startswith("/metadata/identity/oauth2/token?") for path in standin.asked)


def test_the_version_that_is_named_is_the_one_shown(standin: Azure) -> None:
    """The page shows the secret's version that the environment names, not the newest one."""
    standin.secrets |= {"mySecret/": "new", "mySecret/0123abcd": "old"}
    with app({**NAMES, **standin.environment(), "AZURE_KEYVAULT_SECRET_VERSION": "0123abcd"}) as url:
        assert fetch(f"{url}/keyvault") == (200, "old")


def test_the_identity_that_is_named_is_the_one_asked_for(standin: Azure) -> None:
    """A pod with several identities chooses with AZURE_CLIENT_ID."""
    standin.secrets["mySecret/"] = "value"
    with app({**NAMES, **standin.environment(), "AZURE_CLIENT_ID": "11111111-2222"}) as url:
        assert fetch(f"{url}/keyvault") == (200, "value")
    assert any("client_id=11111111-2222" in path for path in standin.asked)


def test_a_refusal_of_the_vault_is_shown_in_one_line(standin: Azure) -> None:
    """A refusal is answered with 502 and Azure's sentence, and the server keeps running."""
    with app({**NAMES, **standin.environment()}) as url:
        assert fetch(f"{url}/keyvault") == (502, "(Forbidden) The identity may not get this secret.")
        assert fetch(f"{url}/healthz") == (200, "ok")


def test_a_pod_without_identity_is_told_so(standin: Azure) -> None:
    """When IMDS knows no identity, the answer is 502 with the library's sentence."""
    standin.has_identity = False
    with app({**NAMES, **standin.environment()}) as url:
        status, text = fetch(f"{url}/keyvault")
    assert status == 502
    assert "Identity not found" in text
    assert "\n" not in text


def test_other_pages_are_not_there(standin: Azure) -> None:
    """Any other page is answered with 404, which names the pages that exist."""
    with app({**NAMES, **standin.environment()}) as url:
        assert fetch(f"{url}/secrets") == (404, "there are two pages here: /keyvault and /healthz")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"AZURE_KEYVAULT_NAME": ""}, "AZURE_KEYVAULT_NAME is not set"),
        ({"AZURE_KEYVAULT_SECRET_NAME": ""}, "AZURE_KEYVAULT_SECRET_NAME is not set"),
        ({"AZURE_KEYVAULT_NAME": "evil.example/"}, 'AZURE_KEYVAULT_NAME: "evil.example/" cannot be a name'),
        ({"PORT": "http"}, 'PORT: "http" is not a port'),
    ],
)
def test_a_wrong_environment_is_one_sentence_and_exit_status_2(changes: dict[str, str], named: str) -> None:
    """The error is a sentence that names the variable, without a traceback."""
    process = _start({**NAMES, **changes})
    _, told = process.communicate(timeout=30)
    assert process.returncode == 2
    assert named in told
    assert len(told.splitlines()) == 1


def test_the_manifests_use_the_capitalised_spelling_of_2018() -> None:
    """The walk-through's manifests are kept as they were, to show that they still work."""
    identity = yaml.safe_load((EXAMPLE / "azureidentity.yaml").read_text())
    binding = yaml.safe_load((EXAMPLE / "azureidentitybinding.yaml").read_text())
    assert set(identity["spec"]) == {"type", "ResourceID", "ClientID"}
    assert set(binding["spec"]) == {"AzureIdentity", "Selector"}


def test_the_deployments_label_is_the_bindings_selector() -> None:
    """Label, selector and identity have the same name in all three manifests; otherwise the pod gets no identity."""
    binding = yaml.safe_load((EXAMPLE / "azureidentitybinding.yaml").read_text())
    deployment, service = yaml.safe_load_all((EXAMPLE / "keyvaultsample.yaml").read_text())
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert labels["aadpodidbinding"] == binding["spec"]["Selector"]
    assert service["spec"]["selector"].items() <= labels.items()
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert {"AZURE_KEYVAULT_NAME", "AZURE_KEYVAULT_SECRET_NAME"} <= {variable["name"] for variable in container["env"]}
