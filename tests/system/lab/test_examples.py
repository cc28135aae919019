"""The examples of `--help`, run as they stand: those of the lab and of the commands that read a cluster, in a lab."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from references.commands import example, leaves

from podidentity.cli import commands
from podidentity.cli.main import DAEMONS

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]
REPOSITORY = Path(__file__).parents[3]
EXAMPLES = {
    " ".join(path[1:]): example(command)
    for path, command in leaves(("podidentity",), commands.cli)
    if path[1] not in DAEMONS
}
ELSEWHERE = {
    "lab demo": "tests/system/demo runs it",
    "lab shell": "it needs a terminal: tests/system/lab/test_up_and_down.py runs it",
    "lab run": "it needs an identity and az: tests/interop/test_local_identity.py runs it",
    "lab open": "it serves until Ctrl-C: tests/system/page/test_open.py runs it",
    "lab browse": "somebody has to sign in: tests/interop/test_sign_in.py runs it",
    "lab load": "it needs an image: tests/system/lab/test_images.py runs it",
    "lab join": "a late node needs a real cluster: tests/cluster/test_joining.py runs it",
    "verify": "it needs a subscription: tests/system/lab/test_verify.py runs it",
    **dict.fromkeys(
        ("credential create", "credential delete", "credential list"),
        "it needs an identity: tests/daemons/cli/test_credential.py runs it",
    ),
    **dict.fromkeys(
        ("serviceaccount create", "serviceaccount delete"),
        "it needs a tenant: tests/daemons/cli/test_serviceaccount.py runs it",
    ),
    "issuer verify": "the lab's issuer is not public: tests/daemons/cli/test_issuer.py runs it",
    "jwks": "it needs a file with keys: tests/daemons/cli/test_issuer.py runs it",
}
FIRST = ("lab up", "lab env", "lab manifest", "rollout")
"""In this order; the others follow, and `lab down` comes last."""


def test_every_example_works(tmp_path: Path) -> None:
    """In one shell; what they print is what a reader of `--help` sees."""
    assert ELSEWHERE.keys() - EXAMPLES.keys() <= {"verify"}
    here = [name for name in EXAMPLES if name not in ELSEWHERE]
    ordered = [*FIRST, *(name for name in here if name not in {*FIRST, "lab down", "lab log"}), "lab down"]
    pod = (REPOSITORY / "deploy/demo/deployment.yaml").read_text()
    assert "aadpodidbinding: demo" in pod
    (tmp_path / "labs").mkdir(mode=0o700)
    script = ["set -uo pipefail"]
    for name in ordered:
        script += [f"echo '== {name}'", EXAMPLES[name], f'echo "status of {name}: $?"']
        if name == "rollout":
            script += [
                "kubectl run demo --image=podidentity/lab-tools:1 --labels=aadpodidbinding=demo -- sleep 300",
                "kubectl wait --for=condition=Ready pod/demo --timeout=60s",
                "podidentity lab log; echo log",
            ]
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PODIDENTITY_LAB_HOME": str(tmp_path / "labs"),
    }
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)],
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    statuses = dict(
        line.removeprefix("status of ").rsplit(": ", 1)
        for line in done.stdout.splitlines()
        if line.startswith("status of ")
    )
    assert statuses.keys() == set(ordered)
    # The pod has no binding: `explain` says so, with the status for that.
    expected = {name: "1" if name.startswith("explain") else "0" for name in ordered}
    assert statuses == expected, done.stdout + done.stderr
