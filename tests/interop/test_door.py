"""The lab's user has access to the state of the lab's Azure through a socket; programs in the lab do not."""

import httpx2

from interop.stage import Stage
from podidentity_lab.azure import Azure
from podidentity_lab.directory import Directory


def test_the_labs_user_sets_faults_reads_the_log_and_takes_the_state_along(stage: Stage) -> None:
    """The user's own control socket serves them, and the saved state makes the same Azure again."""
    socket = Directory(stage.lab.directory).control
    assert socket.stat().st_mode & 0o077 == 0
    with httpx2.Client(transport=httpx2.HTTPTransport(uds=str(socket)), base_url="http://lab/azure") as door:
        before = door.get("/faults").json()["patch_seconds"]
        assert door.patch("/faults", json={"patch_seconds": 0.25}).json()["patch_seconds"] == 0.25
        assert door.patch("/faults", json={"patch_seconds": before}).status_code == 200
        assert door.patch("/faults", json={"patch": 1}).status_code == 400
        seen = {one["service"] for one in door.get("/log").json()}
        assert {"arm", "blob", "entra", "graph", "imds", "keyvault"} >= seen > {"arm", "entra"}
        again = Azure.restore(door.get("/state").text)
    assert again.settings.tenant_id == stage.lab.variables["LAB_TENANT_ID"]
    assert stage.admin.identity("interop", "interop").lower() in again.state.identities


def test_nothing_in_the_lab_reaches_that_door(stage: Stage) -> None:
    """For a pod the path is one of ARM's that needs a token, and the socket's file is not in the pod."""
    done = stage.unbound.run(
        "curl -s -o /dev/null -w '%{http_code}' https://management.azure.com/azure/faults; find / -xdev -type s"
    )
    assert done.out.strip() == "401", done.err
