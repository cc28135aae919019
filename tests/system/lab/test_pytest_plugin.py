"""The lab's plugin of pytest, in a pytest of its own: what its fixtures make, and leave behind."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from system.lab.running import processes_of

pytestmark = pytest.mark.root
SETTINGS = "[pytest]\nazure_lab_seed = seed.yaml\n"
SEED = """
identities: [{name: reader, group: app}]
vaults: [{name: seeded, group: app, secrets: {greeting: world}}]
roles: [{role: Key Vault Secrets User, to: reader, scope: seeded}]
"""
TESTS = '''
import json, os, subprocess
import pytest
from podidentity.errors import LabError

ASK = """
curl -sS -o /dev/null -w '%{http_code}' "$IDENTITY_ENDPOINT?resource=https://vault.azure.net" \\
  -H "X-IDENTITY-HEADER: $IDENTITY_HEADER"
"""

def ask(environment):
    return subprocess.run(["sh", "-c", ASK], env=environment, capture_output=True, text=True, check=True).stdout

def test_the_seeds_identity_is_there_for_a_program_of_its_own(azure_lab):
    environment = azure_lab.environment(azure_lab.identity("reader"))
    assert ask(environment) == "200"
    assert azure_lab.log("imds")[-1]["identity"] == "reader"
    assert "IDENTITY_ENDPOINT" not in os.environ

def test_this_process_is_an_identity_for_one_test(lab_identity, azure_lab):
    assert ask(os.environ) == "200"
    assert azure_lab.log("imds")[-1]["who"] == lab_identity.client_id
    assert os.environ.get("AZURE_CLIENT_ID") is None

def test_and_in_the_next_one_it_is_what_it_was():
    assert os.environ["AZURE_CLIENT_ID"] == "somebody"
    assert "IDENTITY_ENDPOINT" not in os.environ

def test_faults_end_with_the_body_also_when_it_fails(azure_lab, faults, lab_identity):
    with pytest.raises(ZeroDivisionError), faults(imds_statuses=[500, 500], imds_seconds=0.01):
        assert ask(os.environ) == "500"
        1 / 0
    assert ask(os.environ) == "200"
    with pytest.raises(LabError, match="faults: give an object with some of patch_seconds"), faults(nope=1):
        pass

def test_vaults_and_identities_are_new_each_time(azure_lab, lab_vault, lab_identity):
    others = azure_lab.create_vault(), azure_lab.create_identity()
    assert others[0].url != lab_vault.url
    assert others[1].client_id != lab_identity.client_id
    assert lab_identity.secret not in repr(lab_identity)
'''


def run(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run pytest in a folder with these tests."""
    (folder / "pytest.ini").write_text(SETTINGS)
    (folder / "seed.yaml").write_text(SEED)
    (folder / "test_them.py").write_text(TESTS)
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "HOME": str(folder), "AZURE_CLIENT_ID": "somebody", **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )


def test_the_fixtures_do_what_their_page_says(tmp_path: Path) -> None:
    """All of those tests pass, and no lab is left."""
    done = run(tmp_path, PODIDENTITY_LAB_HOME=str(tmp_path / "labs"))
    assert (done.returncode, "5 passed" in done.stdout) == (0, True), done.stdout + done.stderr
    assert not processes_of(tmp_path)
    assert [path.name for path in (tmp_path / "labs").iterdir()] == [".lock"]


def test_a_lab_that_cannot_start_is_one_sentence(tmp_path: Path) -> None:
    """In the failure of each test that needs it; the others pass."""
    done = run(tmp_path, PODIDENTITY_LAB_HOME="/proc/nowhere")
    assert (done.returncode, "1 passed, 4 errors" in done.stdout) == (1, True), done.stdout
    assert "azure_lab: the lab's directory /proc/nowhere cannot be made" in done.stdout
    assert "Traceback" not in done.stdout
