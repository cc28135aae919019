"""`podidentity verify` against the Azure of a lab: on an installation that works, on broken ones, stopped early."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from system.lab.running import Lab, lab
from waiting import until

pytestmark = [pytest.mark.root, pytest.mark.timeout(400)]
REPOSITORY = Path(__file__).parents[3]
MANIFEST = REPOSITORY / "deploy/infra/deployment-rbac.yaml"
COMMAND = (sys.executable, "-m", "podidentity", "verify", "--yes")


@pytest.fixture
def one(tmp_path: Path) -> Iterator[Lab]:
    """A lab, and its owner signed in as `verify` wants it."""
    home = tmp_path / "labs"
    home.mkdir(mode=0o700)
    with lab(home, "verify") as running:
        owner = {
            "AZURE_TENANT_ID": running.variables["LAB_TENANT_ID"],
            "AZURE_CLIENT_ID": running.variables["LAB_OWNER_CLIENT_ID"],
            "AZURE_CLIENT_SECRET": running.variables["LAB_OWNER_CLIENT_SECRET"],
        }
        running.variables |= owner
        yield running


def install(one: Lab, *nmi_flags: str) -> None:
    """Install podidentity, NMI with further flags, and wait until it is ready."""
    objects = list(yaml.safe_load_all(MANIFEST.read_text()))
    for obj in objects:
        if obj["kind"] == "DaemonSet":
            obj["spec"]["template"]["spec"]["containers"][0]["args"] += nmi_flags
    one.create(*objects)
    one.kubectl("rollout", "status", "daemonset/nmi", "--timeout=60s")
    one.kubectl("rollout", "status", "deployment/mic", "--timeout=60s")


def verify(one: Lab, *words: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """Run the command; return its exit status, and its findings by what they are about."""
    command = [*COMMAND, "--output", "json", "--timeout", "60", *words]
    done = subprocess.run(command, env=one.variables, capture_output=True, text=True, check=False, timeout=240)
    assert done.stdout, done.stderr
    document = json.loads(done.stdout)
    assert (document["apiVersion"], document["kind"]) == ("podidentity.io/v1", "Verification")
    return done.returncode, {finding["check"]: finding for finding in document["findings"]}


def remains(one: Lab) -> list[str]:
    """Return what a trial left: namespaces, and identities that it created and did not delete."""
    namespaces = [item["metadata"]["name"] for item in one.get("namespaces")["items"]]
    log = [json.loads(line) for line in one.run("log", "--name", "verify", "--output", "json").stdout.splitlines()]
    changes = [(entry["what"].split()[0], entry["resource"]) for entry in log if entry["service"] == "ARM"]
    identities = {resource for method, resource in changes if method == "PUT" and "podidentity-verify-" in resource}
    gone = {resource for method, resource in changes if method == "DELETE"}
    return [*(name for name in namespaces if name.startswith("podidentity-verify-")), *(identities - gone)]


def test_an_installation_that_works(one: Lab) -> None:
    """Every step is as it should be, and nothing is left of it."""
    install(one)
    status, findings = verify(one)
    assert {check: finding["verdict"] for check, finding in findings.items()} == dict.fromkeys(
        (
            *("sign-in", "installation", "identity", "objects", "assigned", "token", "header", "machine", "neighbour"),
            *("taken off", "removed"),
        ),
        "ok",
    ), findings
    assert status == 0
    assert remains(one) == []


def test_a_cluster_where_pods_reach_imds_themselves(one: Lab) -> None:
    """The one fault that matters most: a pod without a binding gets a token. It is found, and cleaned up after."""
    install(one, "--redirect=none")
    status, findings = verify(one)
    assert status == 1
    assert findings["neighbour"]["verdict"] == "problem"
    assert "a pod without a binding got a token of" in findings["neighbour"]["what"]
    assert findings["removed"]["verdict"] == "ok"
    assert remains(one) == []


def test_nothing_is_created_where_nothing_is_installed(one: Lab) -> None:
    """`verify` creates nothing where podidentity is not installed, and does nothing at all without --yes."""
    status, findings = verify(one)
    assert status == 1
    assert findings["installation"]["what"] == "no pod of NMI is ready"
    assert remains(one) == []
    done = subprocess.run(COMMAND[:-1], env=one.variables, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert "agree with --yes" in done.stderr


def test_who_stops_it_finds_nothing_left(one: Lab) -> None:
    """Ctrl-C in the middle: what was created is removed before it ends."""
    install(one)
    process = subprocess.Popen(COMMAND, env=one.variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        until(
            lambda: any(
                item["metadata"]["name"].startswith("podidentity-verify-") for item in one.get("namespaces")["items"]
            ),
            "the trial's namespace",
        )
        os.kill(process.pid, signal.SIGINT)
        output, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, output + errors
    assert "nothing of this trial is left" in output
    assert remains(one) == []
