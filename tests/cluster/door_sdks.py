"""Azure's SDKs in pods of a real cluster, unmodified and each in two versions: what they are answered by each door.

A pod runs their programs one after the other, so that none keeps another from its time limits: SDKs wait a second for
the metadata address. Programs, and what they need, are this machine's files.
"""

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.brokers import folder_volumes, machine_folders, mount_folders
from cluster.doors import ON_HOST, asking_pod
from cluster.harness import Cluster, client_id
from interop import clients
from interop.managed.programs import Sdk
from podidentity.core.model.federation import EXCHANGE_AUDIENCE
from podidentity_lab.azure.tls import JAVA_PASSWORD
from podidentity_lab.directory import Directory
from system.lab.running import Json

METADATA, TOKEN_FILE, DIRECT = "metadata", "token-file", "direct"
_FEDERATED = "/var/run/secrets/azure/tokens"
_TRUST = "/var/run/secrets/lab/trust.p12"
_JAVA_TRUST = (f"={_TRUST}", f"Password={JAVA_PASSWORD}", "Type=PKCS12")
_VARIABLES = {
    METADATA: (),
    TOKEN_FILE: ("IDENTITY_ENDPOINT", "IMDS_ENDPOINT"),
    DIRECT: ("AZURE_CLIENT_ID", "AZURE_TENANT_ID", "AZURE_FEDERATED_TOKEN_FILE", "AZURE_AUTHORITY_HOST"),
}
"""The variables of each door; a program has those of its own door alone."""
_RUN = """
import json, os, subprocess
jobs, doors = json.loads(os.environ.pop("JOBS")), json.loads(os.environ.pop("DOORS"))
for client, door, directory, command in jobs:
    others = {name for other, names in doors.items() if other != door for name in names}
    variables = {name: value for name, value in os.environ.items() if name not in others}
    process = subprocess.run(command, cwd=directory, env=variables, capture_output=True, text=True)
    answers = json.loads(process.stdout) if process.returncode == 0 else process.stderr[-3000:]
    print(json.dumps([client, door, answers]), flush=True)
"""


def pod(cluster: Cluster, identity: str, name: str, node: str, sdks: Sequence[Sdk], *doors: str, **spec: Any) -> Json:
    """Return a pod in which each SDK asks by each door, in the namespace whose pods may see the node's files."""
    jobs, folders = [], machine_folders(str(Path(sys.executable).resolve()))
    for sdk in sdks:
        directory = clients.installed(sdk.client)
        program, *words = sdk.command(directory)
        program = program if "/" in program else str(Path(shutil.which(program) or program).resolve())
        folders |= machine_folders(str(Path(program).resolve()))
        jobs += [[sdk.client, door, str(directory), [program, *words]] for door in doors]
    folders -= {"/etc/ssl"}  # the image has the lab's certificates there; Java is told of its own
    item = asking_pod(identity, name, ON_HOST, node, _RUN, **spec)
    (container,) = item["spec"]["containers"]
    container["command"][0] = str(Path(sys.executable).resolve())  # the image's own is hidden by the machine's /usr
    del container["securityContext"]  # root's files
    variables = {
        "AZURE_CLIENT_ID": identity,
        "AZURE_TENANT_ID": cluster.lab.variables["LAB_TENANT_ID"],
        "AZURE_AUTHORITY_HOST": "https://login.microsoftonline.com/",
        "AZURE_FEDERATED_TOKEN_FILE": f"{_FEDERATED}/azure-identity-token",
        "JAVA_TOOL_OPTIONS": " ".join(f"-Djavax.net.ssl.trustStore{end}" for end in _JAVA_TRUST),
        "HOME": "/nonexistent",
        "JOBS": json.dumps(jobs),
        "DOORS": json.dumps(_VARIABLES),
    }
    container["env"] += [{"name": key, "value": value} for key, value in variables.items()]
    mount_folders(container, folders)
    token = {"serviceAccountToken": {"audience": EXCHANGE_AUDIENCE, "path": "azure-identity-token"}}
    trust = str(Directory(cluster.lab.directory).java_trust_store)
    item["spec"]["volumes"] += [
        *folder_volumes(folders),
        {"name": "federated", "projected": {"sources": [token]}},
        {"name": "trust", "hostPath": {"path": trust}},
    ]
    for volume, path in (("federated", _FEDERATED), ("trust", _TRUST)):
        container["volumeMounts"].append({"name": volume, "mountPath": path, "readOnly": True})
    return item


def answers(text: str) -> Mapping[tuple[str, str], Json | str]:
    """Return what each client was answered by each door, from a pod's log: by its credentials, or how it failed."""
    lines = [json.loads(line) for line in text.splitlines()]
    return {(client, door): content for client, door, content in lines}


def owners(content: Json | str) -> Json:
    """Return whose token each credential got, as a client ID, or its error; `content` is one of `answers`."""
    assert isinstance(content, dict), content
    return {name: client_id(answer["token"]) if "token" in answer else answer for name, answer in content.items()}
