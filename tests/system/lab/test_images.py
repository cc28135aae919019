"""An application developer's own image in the lab: loaded from an archive, it runs as its image and its pod say.

The images are made by the test, of programs of this machine with their libraries.
"""

import base64
import json
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from system.lab.own_images import buildah, container_of, programs, push
from system.lab.running import Lab, home_of_nobody, lab, missing, pod
from unit.lab import oci_archives as make
from waiting import until

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]
REPOSITORY = Path(__file__).parents[3]
TOKEN_URL = (
    "http://169.254.169.254/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://vault.azure.net"
)
PROVIDER = "Microsoft.ManagedIdentity/userAssignedIdentities"
ACCOUNTS: make.Files = {
    "etc/passwd": "root:x:0:0::/root:/bin/sh\napp:x:1234:1235::/home/app:/bin/sh\n",
    "etc/group": "app:x:1235:\ndata:x:77:app\n",
    "var/run": make.member("var/run", tarfile.SYMTYPE, "/run"),  # as in Debian's images
}
SEED = """\
identities: [{name: reader, group: shop, client_id: 11111111-1111-4111-8111-111111111111}]
roles: [{role: Managed Identity Operator, to: cluster, scope: reader}]
"""
IDENTITY = """\
apiVersion: aadpodidentity.k8s.io/v1
kind: AzureIdentity
metadata: {{name: reader, namespace: default}}
spec:
  type: 0
  resourceID: /subscriptions/{subscription}/resourceGroups/shop/providers/{provider}/reader
  clientID: 11111111-1111-4111-8111-111111111111
---
apiVersion: aadpodidentity.k8s.io/v1
kind: AzureIdentityBinding
metadata: {{name: reader, namespace: default}}
spec: {{azureIdentity: reader, selector: reader}}
"""
"""What lets pods with the label use the identity of `SEED`."""


@pytest.fixture(scope="module")
def layers() -> Sequence[bytes]:
    """A shell and a few programs; and over them the accounts and a file of the application."""
    below = make.tar({"app/greeting": "below", "app/secret": "x"})
    above = make.tar({**ACCOUNTS, "app/greeting": "hello", "app/.wh.secret": ""})
    return programs("sh", "env", "id", "cat", "curl"), below, above


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A lab of one node, in whose Azure there is an identity that MIC may use."""
    home = tmp_path_factory.mktemp("labs")
    home.chmod(0o700)
    seed = home.with_suffix(".yaml")
    seed.write_text(SEED)
    with lab(home, "images", "--nodes", "1", "--seed", str(seed)) as one:
        yield one


def load(up: Lab, path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run `lab load`."""
    return up.run("load", "--name", up.name, str(path), *words)


def test_an_image_runs_as_itself_and_as_its_pod_says(up: Lab, layers: Sequence[bytes], tmp_path: Path) -> None:
    """Entry point, arguments, environment, user, groups and directory are the image's, unless the pod has its own."""
    script = (
        'cat /app/greeting; echo; id; echo "$PWD $HOME $COLOUR $*"; cat /app/secret 2>&1 >/dev/null; echo x >/tmp/own'
    )
    config = {"Entrypoint": ["sh", "-c", script, "sh"], "Cmd": ["a", "b"], "User": "app", "WorkingDir": "/work"}
    files = make.docker_files(layers, ["app:1"], **config, Env=["COLOUR=red"])
    done = load(up, make.write(tmp_path / "app.tar", files))
    assert (done.returncode, done.stdout) == (0, "loaded docker.io/library/app:1\n"), done.stderr

    lines = up.run_pod(pod("as-image", image="app:1")).splitlines()
    assert lines[:3] == [
        "hello",
        "uid=1234(app) gid=1235(app) groups=1235(app),77(data)",
        "/work /home/app red a b",
    ]
    assert "No such file" in lines[3]
    changes: dict[str, Any] = {
        "args": ["c"],
        "env": [{"name": "COLOUR", "value": "blue"}],
        "workingDir": "/app",
        "securityContext": {"runAsUser": 7, "runAsGroup": 8},
    }
    lines = up.run_pod(pod("as-pod", image="docker.io/library/app:1", imagePullPolicy="Never", **changes)).splitlines()
    assert lines[1:3] == ["uid=7 gid=8 groups=8", "/app / blue c"]
    own_command = pod("own-command", image="app:1", command=["sh", "-c", 'echo "$# arguments"'])
    assert up.run_pod(own_command) == "0 arguments\n"


def test_an_image_that_is_not_there_is_waited_for(up: Lab, layers: Sequence[bytes], tmp_path: Path) -> None:
    """A missing image stands in the pod's status with what to do; once it is loaded, the same pod runs."""
    up.create(pod("early", image="localhost/late:1", imagePullPolicy="Never"))
    until(lambda: "waiting" in up.container("early")["state"], "the pod's reason to wait")
    waiting = up.container("early")["state"]["waiting"]
    assert waiting["reason"] == "ErrImageNeverPull"
    assert "podidentity lab load" in waiting["message"]
    files = make.layout_files(layers, "localhost/late:1", Cmd=["sh", "-c", "echo here"])
    assert load(up, make.write(tmp_path / "late.tar", files)).returncode == 0
    assert up.finished("early") == "here\n"


def test_a_bad_archive_is_one_sentence(up: Lab, layers: Sequence[bytes], tmp_path: Path) -> None:
    """Status 1 for what is in it, 2 for a file that is not there; a layer that is not what it says changes no name."""
    files = make.docker_files(layers, ["evil:1"])
    configuration = json.loads(files["manifest.json"])[0]["Config"]
    wrong = json.loads(files[configuration])
    wrong["rootfs"]["diff_ids"][0] = make.digest(b"")
    manifest = [{"Config": "c.json", "RepoTags": ["evil:1"], "Layers": list(files)[:3]}]
    evil = {**files, "c.json": json.dumps(wrong).encode(), "manifest.json": json.dumps(manifest).encode()}
    done = load(up, make.write(tmp_path / "evil.tar", evil))
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)
    assert "its content has another digest" in done.stderr
    assert load(up, tmp_path / "nowhere.tar").returncode == 2
    up.create(pod("evil", image="evil:1", imagePullPolicy="Never"))
    until(lambda: "waiting" in up.container("evil")["state"], "the pod's reason to wait")
    assert up.container("evil")["state"]["waiting"]["reason"] == "ErrImageNeverPull"


def test_an_image_gets_its_own_token(up: Lab, layers: Sequence[bytes], tmp_path: Path) -> None:
    """It is its pod's: NMI answers the image's curl with a token of the identity that the binding gives."""
    command = ["curl", "-sS", "--fail-with-body", "--retry", "30", "--retry-all-errors", "-H", "Metadata: true"]
    files = make.docker_files(layers, ["asks:1"], Entrypoint=command, Cmd=[TOKEN_URL], User="1234")
    assert load(up, make.write(tmp_path / "asks.tar", files)).returncode == 0
    up.kubectl("apply", "-f", str(REPOSITORY / "deploy/infra/deployment-rbac.yaml"))
    subscription = up.variables["LAB_SUBSCRIPTION_ID"]
    up.kubectl("apply", "-f", "-", stdin=IDENTITY.format(subscription=subscription, provider=PROVIDER))
    up.kubectl("rollout", "status", "daemonset/nmi", "--timeout=60s")
    asking = pod("asks", image="asks:1")
    asking["metadata"]["labels"]["aadpodidbinding"] = "reader"
    token = re.search(r'"access_token": *"([^"]+)"', up.run_pod(asking))
    assert token
    claims = token[1].split(".")[1]
    appid = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))["appid"]
    assert appid == "11111111-1111-4111-8111-111111111111"


def test_a_lab_without_root_runs_images_too(layers: Sequence[bytes]) -> None:
    """All files are the one user's; what the container writes is laid over the image all the same."""
    files = make.docker_files(layers, ["app:1"], Cmd=["sh", "-c", "cat /app/greeting; echo x >/app/new; id -u"])
    with home_of_nobody() as (home, user), lab(home, "rootless", "--nodes", "1", user=user) as one:
        done = load(one, make.write(home.parent / "app.tar", files))
        assert done.returncode == 0, done.stderr
        assert one.run_pod(pod("app", image="app:1")) == "hello0\n"


def test_buildah_pushes_and_pods_run_what_was_pushed(up: Lab, layers: Sequence[bytes], tmp_path: Path) -> None:
    """By the name of the lab's registry; the same tag again is what `Always` runs, and what `IfNotPresent` does not."""
    if os.geteuid() != 0:
        missing("buildah without a user namespace needs root")
    if not shutil.which("buildah"):
        missing("buildah is not installed")
    name = f"{up.variables['LAB_REGISTRY']}/team/app:1"
    container = container_of(tmp_path, layers)
    for text in ("first", "second"):
        push(tmp_path, container, ["sh", "-c", f"echo {text}"], name)
        assert up.run_pod(pod(f"{text}-present", image=name)) == "first\n"
        assert up.run_pod(pod(f"{text}-always", image=name, imagePullPolicy="Always")) == f"{text}\n"
    buildah(tmp_path, "pull", "--tls-verify=false", f"docker://{name}")
