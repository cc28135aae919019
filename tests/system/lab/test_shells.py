"""What a shell and a command of the host get of a lab that is up: variables, and the identity that they are."""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from podidentity.cli.main import main
from podidentity_lab import keeping
from system.lab.running import Lab, lab

pytestmark = pytest.mark.root
IDENTITY = "reader"
CLIENT_ID = "11111111-1111-4111-8111-111111111111"
SEED = f"""
groups: [empty]
identities:
  - name: {IDENTITY}
    group: app
    client_id: {CLIENT_ID}
    federated: [{{issuer: https://issuer.example, subject: somebody}}]
vaults:
  - {{name: seeded, group: app, secrets: {{greeting: world}}, keys: {{signing: P-384}}, certificates: {{web: CN=web}}}}
accounts: [{{name: seededstore, group: app, containers: [box], blobs: {{box/a b.txt: "héllo"}}}}]
users: [{{name: ada@lab.test, password: not-a-real-one}}]
directory_groups:
  - {{name: all, members: [team]}}
  - {{name: team, members: [ada@lab.test, {IDENTITY}, ci]}}
applications:
  - name: ci
    client_id: {CLIENT_ID.replace("1", "2")}
    secret: fixed
    federated: [{{issuer: https://x.example, subject: s}}]
roles:
  - {{role: Key Vault Secrets User, to: {IDENTITY}, scope: seeded}}
  - {{role: Key Vault Crypto User, to: {IDENTITY}, scope: seeded}}
  - {{role: Managed Identity Operator, to: cluster, scope: {IDENTITY}}}
  - {{role: Reader, to: ci, scope: subscription}}
  - {{role: Storage Blob Data Reader, to: all, scope: seededstore}}
  - {{role: Reader, to: ada@lab.test, scope: app}}
"""
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A lab with what the seed says."""
    home = tmp_path_factory.mktemp("home") / "labs"
    home.mkdir(mode=0o700)
    (home.parent / "seed.yaml").write_text(SEED)
    with lab(home, "one", "--nodes", "1", "--seed", str(home.parent / "seed.yaml")) as one:
        yield one


@pytest.fixture
def run(up: Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a `podidentity lab` command in this process: its status, output and errors."""
    monkeypatch.setenv("PODIDENTITY_LAB_HOME", str(up.home))
    monkeypatch.setenv("LAB_NAME", "one")

    def run(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(["lab", *words])
        return int(str(ended.value.code)), *capsys.readouterr()

    return run


def start(up: Lab, *words: str, script: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a `podidentity lab` command in a process of its own, with `script` as its standard input."""
    return subprocess.run(
        up.user.command(*words),
        env={**up.environment(), "LAB_NAME": "one", **variables},
        input=script,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_a_shell_in_a_lab_that_is_up_leaves_it_up(up: Lab) -> None:
    """As the identity; its status is handed on, and the lab stays."""
    script = "echo $LAB_NAME $LAB_IDENTITY_NAME ${IDENTITY_ENDPOINT##*/} ${AZURE_CLIENT_ID-unset}; exit 7\n"
    others = {"SHELL": "/bin/sh", "AZURE_CLIENT_ID": "somebody"}
    done = start(up, "shell", "--name", "one", "--identity", IDENTITY, script=script, **others)
    assert (done.returncode, done.stdout) == (7, f"one {IDENTITY} token unset\n"), done.stderr
    assert "the lab stays" in done.stderr
    assert (up.directory / "lab.json").exists()


def test_the_variables_in_three_forms_are_the_same(run: Run) -> None:
    """For a shell, an .env file and programs; what the host trusts besides is unset or empty."""
    variables = json.loads(run("env", "-o", "json")[1])
    assert variables.pop("SSL_CERT_DIR", "missing") is None
    shell = subprocess.run(
        ["/bin/sh", "-c", run("env")[1] + "\nenv -0"],
        env={"PATH": os.environ["PATH"], "SSL_CERT_DIR": "/etc/ssl/certs"},
        capture_output=True,
        text=True,
        check=True,
    )
    exported = dict(item.split("=", 1) for item in shell.stdout.split("\0") if "=" in item)
    assert "SSL_CERT_DIR" not in exported
    assert variables.items() <= exported.items()
    lines = (line.split("=", 1) for line in run("env", "-o", "dotenv")[1].splitlines())
    dotenv = {name: json.loads(value) for name, value in lines}
    assert dotenv == {**variables, "SSL_CERT_DIR": ""}
    assert variables["LAB_CLUSTER_CLIENT_SECRET"] != variables["LAB_OWNER_CLIENT_SECRET"]


def ask(run: Run) -> tuple[str, str]:
    """Ask for a token with the environment of an identity, by curl: the head and the body of the answer."""
    variables = json.loads(run("env", "--identity", IDENTITY, "-o", "json")[1])
    url = f"{variables['IDENTITY_ENDPOINT']}?resource=https://vault.azure.net&api-version=2019-08-01"
    command = ["curl", "-sSi", "--noproxy", "*", url, "-H", f"X-IDENTITY-HEADER: {variables['IDENTITY_HEADER']}"]
    head, _, body = subprocess.run(command, capture_output=True, text=True, check=True).stdout.partition("\n\n")
    return head, body


def test_the_environment_of_an_identity_makes_any_program_that_identity(up: Lab, run: Run) -> None:
    """`lab env --identity`, for whoever starts programs by other means."""
    variables = json.loads(run("env", "--identity", IDENTITY, "-o", "json")[1])
    assert [name for name in ("AZURE_CLIENT_ID", "MSI_ENDPOINT") if variables[name] is not None] == []
    assert variables["AZURE_CONFIG_DIR"] != up.variables["AZURE_CONFIG_DIR"]
    assert json.loads(ask(run)[1])["client_id"] == variables["LAB_IDENTITY_CLIENT_ID"]


def test_a_seed_is_there_from_the_start(up: Lab, run: Run) -> None:
    """The identity reads the secret by its role; the application signs in with its secret and reads the groups."""
    assert json.loads(run("env", "--identity", IDENTITY, "-o", "json")[1])["LAB_IDENTITY_CLIENT_ID"] == CLIENT_ID
    token = json.loads(ask(run)[1])["access_token"]
    secret = curl(up, "https://seeded.vault.azure.net/secrets/greeting?api-version=7.4", token)
    assert secret["value"] == "world"
    key = curl(up, "https://seeded.vault.azure.net/keys/signing?api-version=7.4", token)["key"]
    assert (key["kty"], key["crv"]) == ("EC", "P-384")
    variables = up.variables
    url = f"https://login.microsoftonline.com/{variables['LAB_TENANT_ID']}/oauth2/v2.0/token"
    form = f"grant_type=client_credentials&client_id={CLIENT_ID.replace('1', '2')}&client_secret=fixed"
    answer = curl(up, url, "", "-d", f"{form}&scope=https://management.azure.com/.default")
    root = f"https://management.azure.com/subscriptions/{variables['LAB_SUBSCRIPTION_ID']}/resourceGroups"
    groups = curl(up, f"{root}?api-version=2024-11-01", answer["access_token"])["value"]
    assert {group["name"] for group in groups} >= {"empty", "app"}
    identity = f"{root}/app/providers/Microsoft.ManagedIdentity/userAssignedIdentities/{IDENTITY}"
    account = f"{root}/app/providers/Microsoft.Storage/storageAccounts/seededstore"
    containers = curl(up, f"{account}/blobServices/default/containers?api-version=2024-01-01", answer["access_token"])[
        "value"
    ]
    assert [container["name"] for container in containers] == ["box"]
    credentials = curl(up, f"{identity}/federatedIdentityCredentials?api-version=2024-11-30", answer["access_token"])[
        "value"
    ]
    assert [credential["properties"]["subject"] for credential in credentials] == ["somebody"]


def test_people_and_blobs_of_a_seed_are_saved(up: Lab, run: Run, tmp_path: Path) -> None:
    """A user of the seed signs in and reads a blob by a group's role; a saved lab has all of it."""
    url = f"https://login.microsoftonline.com/{up.variables['LAB_TENANT_ID']}/oauth2/v2.0/token"
    form = "grant_type=password&client_id=04b07795-8ddb-461a-bbee-02f9e1bf7b46&username=ada@lab.test"
    form += "&password=not-a-real-one&scope=https://storage.azure.com/.default"
    token = curl(up, url, "", "-d", form)["access_token"]
    blob = "https://seededstore.blob.core.windows.net/box/a%20b.txt"
    command = ["curl", "-sS", "-H", f"Authorization: Bearer {token}", "-H", "x-ms-version: 2024-11-04", blob]
    assert subprocess.run(command, env=up.variables, capture_output=True, check=True).stdout.decode() == "héllo"
    assert run("save", str(tmp_path / "lab.state"))[0] == 0
    state = keeping.open_state(tmp_path / "lab.state")[0].state
    assert [user.principal_name for user in state.users.values()] == ["ada@lab.test"]
    groups = {group.name: group for group in state.directory_groups.values()}
    assert groups["all"].members == [groups["team"].object_id]
    assert len(groups["team"].members) == 3
    assert state.containers["seededstore/box"].blobs["a b.txt"].content.decode() == "héllo"
    assert set(state.vault_keys) == {"seeded/signing", "seeded/web"}
    assert set(state.certificates) == {"seeded/web"}


def curl(up: Lab, url: str, token: str, *words: str) -> dict[str, Any]:
    """Ask the lab's Azure from a shell; the JSON that it answers."""
    command = ["curl", "-sS", "-H", f"Authorization: Bearer {token}", *words, url]
    done = subprocess.run(command, env=up.variables, capture_output=True, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_faults_are_set_shown_and_cleared(run: Run) -> None:
    """By command; the endpoint of the host answers them, in App Service's form, and says when to come again."""
    done = run("fault", "set", "imds-statuses=429", "retry_after_seconds=7")
    assert done == (0, "imds_statuses=429\nretry_after_seconds=7\n", "")
    head, body = ask(run)
    assert head.startswith("HTTP/1.1 429 ")
    assert "\nretry-after: 7" in head
    assert json.loads(body) == {"statusCode": 429, "message": "Too many requests"}
    assert ask(run)[0].startswith("HTTP/1.1 200 ")
    assert run("fault", "clear") == (0, "no faults\n", "")
    assert "retry_after_seconds=null\n" in run("fault", "show")[1]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("imds_statuses", "give FAULT=VALUE, with one of patch_seconds, "),
        ("nope=1", "give FAULT=VALUE, with one of patch_seconds, "),
        ("imds_statuses=42", "Expected `int` >= 400 - at `$.imds_statuses[0]`"),
        ("imds_fails=2", "Expected `float` <= 1.0 - at `$.imds_fails`"),
        ("patch_seconds=soon", "Expected `float`, got `str` - at `$.patch_seconds`"),
        ("", "give FAULT=VALUE"),
    ],
)
def test_a_fault_that_there_is_not_is_a_sentence(run: Run, word: str, message: str) -> None:
    """With what it takes; nothing changes."""
    before = run("fault", "show", "-o", "json")
    status, _, errors = run("fault", "set", word)
    assert (status, errors.count("\n"), message in errors) == (2, 1, True), errors
    assert run("fault", "show", "-o", "json") == before


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (("run",), 2, "missing argument 'COMMAND...'"),
        (("run", "--", ""), 2, "the command is empty"),
        (("run", "--identity", "nobody", "--", "true"), 1, f"identity 'nobody': there are {IDENTITY}; make it with"),
        (("run", "--identity", IDENTITY, "--", "/nope"), 2, "/nope: No such file or directory"),
        (("run", "--dialect", "imds", "--", "true"), 2, "'imds' is not one of 'app-service', 'arc'"),
        (("env", "-o", "xml"), 2, "'xml' is not one of 'shell', 'dotenv', 'json'"),
        (("env", "--identity", ""), 1, "identity '': there are"),
        (("shell", "--name", "one", "--identity", "nobody", "--dialect", "nope"), 2, "'nope' is not one of"),
    ],
)
def test_a_wrong_word_is_a_sentence(run: Run, words: tuple[str, ...], status: int, message: str) -> None:
    """What is wrong, and what there is instead."""
    actual, output, errors = run(*words)
    assert (actual, output, errors.count("\n")) == (status, "", 1), errors
    assert errors.startswith("error: ")
    assert message in errors


@pytest.mark.parametrize("words", [("run",), ("env",), ("shell",), ("fault", "set"), ("fault", "clear")])
def test_help_has_an_example(run: Run, words: tuple[str, ...]) -> None:
    """The help of each command fits on one screen."""
    status, output, _ = run(*words, "--help")
    assert (status, "Example: " in output, len(output.splitlines()) < 30) == (0, True, True)
    assert Path(output.split()[1]).name == "podidentity"
