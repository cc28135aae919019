"""A lab's Azure and the objects of its Kubernetes outlive it in a file."""

import stat
from pathlib import Path
from typing import Any

import pytest

from podidentity_lab.demo.admin import Admin
from system.lab.running import Lab, lab, pod
from waiting import until

pytestmark = pytest.mark.root
GROUP = "kept"
LOCATION = "westeurope"


SECRET: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Secret",
    "metadata": {"name": "mine"},
    "data": {"password": "dmFsdWU="},
}
DEPLOYMENT: dict[str, Any] = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "web"},
    "spec": {
        "replicas": 1,
        "selector": {"matchLabels": {"app": "web"}},
        "template": {
            "metadata": {"labels": {"app": "web"}},
            "spec": {"containers": pod("web", "sleep infinity")["spec"]["containers"]},
        },
    },
}


def ready_replicas(lab: Lab) -> int:
    """Return how many pods of the Deployment are ready."""
    status = lab.get("deployment", "web").get("status") or {}
    return int(status.get("readyReplicas") or 0)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Where labs live."""
    folder = tmp_path / "labs"
    folder.mkdir(mode=0o700)
    return folder


def test_what_was_saved_goes_on(home: Path, tmp_path: Path) -> None:
    """Tenant, CA, identities, secrets and Kubernetes' objects are the same in a lab that is started with the file.

    The file is private.
    """
    kept = tmp_path / "lab.json"
    with lab(home, "first", "--nodes", "1") as one:
        admin = Admin(one.variables)
        admin.create_group(GROUP, LOCATION)
        identity = admin.create_identity(GROUP, "reader", LOCATION)["properties"]
        admin.create_vault(GROUP, "keptvault", LOCATION)
        admin.set_secret("keptvault", "mine", "value")
        admin.close()
        one.create(SECRET, DEPLOYMENT)
        until(lambda: ready_replicas(one) == 1, "the Deployment's pod")
        uid = one.get("deployment", "web")["metadata"]["uid"]
        assert one.run("save", "--name", "first", str(kept)).returncode == 0
        before = one.variables
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    with lab(home, "second", "--nodes", "2", "--state", str(kept)) as two:
        assert two.variables["LAB_TENANT_ID"] == before["LAB_TENANT_ID"]
        admin = Admin(two.variables)
        again = admin.create_identity(GROUP, "reader", LOCATION)["properties"]
        assert again == identity
        admin.close()
        assert two.get("secret", "mine")["data"] == SECRET["data"]
        assert two.get("deployment", "web")["metadata"]["uid"] == uid
        until(lambda: ready_replicas(two) == 1, "a pod of the Deployment in the second lab")


@pytest.mark.parametrize("content", [None, "no state", '{"format": 0}', "[]"])
def test_a_file_that_is_no_azure_is_a_sentence(home: Path, tmp_path: Path, content: str | None) -> None:
    """The lab does not start, and says why."""
    kept = tmp_path / "lab.json"
    if content is not None:
        kept.write_text(content)
    done = Lab(home, "broken").run("up", "--name", "broken", "--state", str(kept))
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert f"--state {kept}" in last
    assert "Traceback" not in done.stderr


def test_saving_where_nothing_can_be_written_is_a_sentence(home: Path, tmp_path: Path) -> None:
    """The path is named; nothing half-written stays."""
    with lab(home, "first", "--nodes", "1") as one:
        done = one.run("save", "--name", "first", str(tmp_path / "nowhere" / "lab.json"))
    assert done.returncode == 1
    assert "nowhere" in done.stderr
