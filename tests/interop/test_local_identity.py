"""With `podidentity lab run --identity` every client reads the secret from a process of the host.

The clients are unmodified and use their managed identity credential, in both dialects. No pod and no NMI is involved.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from interop.stage import COMMAND_SECONDS, IDENTITY, SECRET, VALUE, VAULT, Done, Record, Stage
from interop.test_sdks import READERS, Reader, version_of

Find = Callable[[str], Path]
DIALECTS = ("app-service", "arc")
TITLES = {
    "app-service": (
        *("Python azure-identity, DefaultAzureCredential", "Python azure-identity.aio", "Python msal"),
        *("JavaScript @azure/identity", "Go azidentity", "Java azure-identity"),
    ),
    "arc": ("Python azure-identity", "JavaScript @azure/identity", "Go azidentity"),
}
"""Which clients are tried in which dialect; go-autorest is older than both."""
READERS_BY_DIALECT = [
    (reader, dialect) for dialect in DIALECTS for reader in READERS if reader.title in TITLES[dialect]
]
pytestmark = pytest.mark.timeout(900)


def run(stage: Stage, home: Path, script: str, *options: str) -> Done:
    """Run a shell script by `lab run --identity`, in an environment with another identity's variables."""
    command = [sys.executable, "-m", "podidentity", "lab", "run", "--name", stage.lab.name, "--identity", IDENTITY]
    others = {
        "AZURE_CLIENT_ID": "somebody",
        "AZURE_TENANT_ID": "t",
        "SSL_CERT_DIR": "/etc/ssl/certs",
        "HOME": str(home),
    }
    ended = subprocess.run(
        [*command, *options, "--", "/bin/sh", "-c", script],
        env={**stage.lab.environment(), **others},
        cwd=home,
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
        check=False,
    )
    return Done(ended.returncode, ended.stdout, ended.stderr)


def start(reader: Reader, directory: Path) -> str:
    """Return the script that starts a reader; Java needs no store of its own for the lab's certificates."""
    variables = f"export AZURE_KEYVAULT_NAME={VAULT} AZURE_KEYVAULT_SECRET_NAME={SECRET}\n"
    if reader.client == "java":
        classes = f"{directory}/build/target/interop-1.jar:{directory}/libs/*"
        return f"{variables}java -XX:TieredStopAtLevel=1 -cp '{classes}' Reader"
    return variables + reader.start(directory)


@pytest.mark.parametrize(
    ("reader", "dialect"),
    READERS_BY_DIALECT,
    ids=[f"{reader.title.replace(' ', '-')}-{dialect}" for reader, dialect in READERS_BY_DIALECT],
)
def test_a_process_of_the_host_reads_the_secret(
    stage: Stage, client: Find, record: Record, tmp_path: Path, reader: Reader, dialect: str
) -> None:
    """The client gets the identity's token, and the vault's own check of rights lets it in."""
    ended = run(stage, tmp_path, start(reader, client(reader.client)), "--dialect", dialect)
    assert ended.status == 0, f"{ended.out}\n{ended.err}"
    read = json.loads(ended.out.strip().splitlines()[-1])
    assert (read["ok"], read.get("secret")) == (True, VALUE), (read, ended.err)
    record(
        reader.title,
        version_of(reader, read),
        f"on the host: reads the secret by `lab run --identity`, dialect {dialect}",
    )


@pytest.mark.parametrize("dialect", DIALECTS)
def test_az_signs_in_as_the_identity(stage: Stage, client: Find, record: Record, tmp_path: Path, dialect: str) -> None:
    """After `az login --identity` az reads the secret, and leaves no token in the profile of the lab's user."""
    script = f"""
        export PATH={client("az")}/bin:$PATH AZURE_CORE_COLLECT_TELEMETRY=0
        az login --identity --allow-no-subscriptions -o none
        az keyvault secret show --vault-name {VAULT} -n {SECRET} --query value -o tsv
    """
    ended = run(stage, tmp_path, script, "--dialect", dialect)
    assert (ended.status, ended.out.strip().splitlines()[-1:]) == (0, [VALUE]), ended.err
    assert not (Path(stage.lab.variables["AZURE_CONFIG_DIR"]) / "msal_token_cache.json").exists()
    record("azure-cli, on the host", "2.91.0", f"login --identity by `lab run --identity`, dialect {dialect}")


def test_a_client_may_name_its_identity_and_no_other(stage: Stage, client: Find, tmp_path: Path) -> None:
    """As on App Service, a client may name its own client ID; another one is refused in App Service's words."""
    script = """
        {python} - <<'EOF'
import os
from azure.identity import ManagedIdentityCredential
scope = "https://vault.azure.net/.default"
print(bool(ManagedIdentityCredential(client_id=os.environ["LAB_IDENTITY_CLIENT_ID"]).get_token(scope).token))
try:
    ManagedIdentityCredential(client_id=os.environ["LAB_OWNER_CLIENT_ID"]).get_token(scope)
except Exception as error:
    print(error)
EOF
    """
    ended = run(stage, tmp_path, script.replace("{python}", f"{client('python')}/bin/python"))
    assert ended.out.startswith("True\n"), ended.err
    assert "No User Assigned or Delegated Managed Identity found" in ended.out


def test_nobody_without_the_secret_gets_a_token(stage: Stage, tmp_path: Path) -> None:
    """Requests without the right header get 401; in dialect arc only the process sees the file with the secret."""
    query = "?resource=https://vault.azure.net&api-version=2019-08-01"
    script = f"""
        curl -s -o /dev/null -w '%{{http_code}} ' "$IDENTITY_ENDPOINT{query}" -H 'X-IDENTITY-HEADER: wrong'
        curl -s -o /dev/null -w '%{{http_code}} ' "$IDENTITY_ENDPOINT{query}"
        curl -s -o /dev/null -w '%{{http_code}}' "$IDENTITY_ENDPOINT{query}" -H "X-IDENTITY-HEADER: $IDENTITY_HEADER"
    """
    assert run(stage, tmp_path, script).out == "401 401 200"
    script = f"""
        curl -s -D - -o /dev/null "$IDENTITY_ENDPOINT{query}" -H Metadata:true | tr -d '\\r' | grep -i www-authenticate
        stat -c %a /var/opt/azcmagent/tokens/*.key; env | grep -c IDENTITY_HEADER; grep -c . /proc/self/mounts >&2
    """
    ended = run(stage, tmp_path, script, "--dialect", "arc")
    assert ended.out.lower().splitlines() == [
        "www-authenticate: basic realm=/var/opt/azcmagent/tokens/podidentity-lab.key",
        "600",
        "0",
    ], ended.err
    assert not Path("/var/opt/azcmagent").exists()


def test_the_log_says_which_identity_it_was(stage: Stage, tmp_path: Path) -> None:
    """The lab's log has the request with its identity, and the host as the asker."""
    url = "$IDENTITY_ENDPOINT?resource=https://vault.azure.net"
    assert run(stage, tmp_path, f'curl -sf "{url}" -H "X-IDENTITY-HEADER: $IDENTITY_HEADER"').status == 0
    entries = map(json.loads, stage.lab.run("log", "--name", stage.lab.name, "-o", "json").stdout.splitlines())
    last = [entry for entry in entries if entry["what"] == "/msi/token"][-1]
    assert (last["asker"], last["identity"], last["status"]) == ("host", IDENTITY, 200)
