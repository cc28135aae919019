"""A tenant who attacks in every way at once for two minutes, and a pod of another namespace on the same node."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cluster import tenant
from cluster.harness import REPOSITORY, Cluster, Identity, pod, until
from cluster.programs import KEEP_ASKING, ONCE
from daemons.nmi.test_archives import with_most_rounds
from daemons.nmi.test_principals import make_pair
from processes import resident_mib

QUIET, HOSTILE = "quiet", tenant.SELECTOR
NODE = "node-1"
SECONDS = 120
PROGRAM = (REPOSITORY / "bench/load/hostile.py").read_text()
HALF_LIMITS_MIB = {"nmi": 128.0, "mic": 256.0}
ASSIGNED = "/apis/aadpodidentity.k8s.io/v1/azureassignedidentities"


@pytest.fixture(scope="module")
def quiet(installed: Cluster) -> Iterator[Identity]:
    """A pod that asks all the time, and gets its tokens."""
    installed.kubectl("create", "namespace", QUIET)
    installed.kubectl("create", "namespace", HOSTILE)
    identity = installed.identity("quiet")
    installed.bind(identity, namespace=QUIET)
    installed.create(pod("asking", KEEP_ASKING, binding="quiet", node=NODE), namespace=QUIET)
    own = f"200 {identity.client_id}"
    until(lambda: installed.counts("asking", QUIET).get(own, 0) > 50, "tokens before")
    yield identity
    installed.delete(f"namespace/{QUIET}", f"namespace/{HOSTILE}")
    until(lambda: not _assigned_to(installed, HOSTILE), "the assigned identities of the hostile pods to go")


def test_a_hostile_neighbour_costs_no_token(
    installed: Cluster,
    quiet: Identity,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The other pod gets tokens alone, and a pod that is created meanwhile gets its token.

    Neither daemon restarts or uses half of its memory limit.
    """
    own, restarts, most = f"200 {quiet.client_id}", installed.restarts(), dict.fromkeys(HALF_LIMITS_MIB, 0.0)
    before = installed.counts("asking", QUIET)
    address = installed.get("node", NODE)["status"]["addresses"][0]["address"]
    words = {"args": [address, str(SECONDS), tenant.CLIENT]}
    program = pod("program", PROGRAM, binding=HOSTILE, node=NODE)
    program["spec"]["containers"][0] |= words
    installed.create(program, namespace=HOSTILE)
    archive = with_most_rounds(make_pair(), tmp_path)
    with ThreadPoolExecutor(4) as writers:
        answers = [*writers.map(lambda one: _post(installed, *one), tenant.requests(NODE, archive))]
    assert all(status in {201, 422} for status in answers)  # 422: refused by today's definitions
    installed.create(pod("late", ONCE, binding="quiet", node=NODE), namespace=QUIET)

    def has_ended() -> bool:
        for name in most:
            most[name] = max(most[name], *map(resident_mib, installed.processes(name)))
        return installed.pod_status("program", HOSTILE).get("phase") in {"Succeeded", "Failed"}

    until(has_ended, "the end of the hostile program", SECONDS + 120)
    begun = json.loads(installed.finished("program", HOSTILE))
    after = installed.counts("asking", QUIET)
    with capsys.disabled():
        print(f"\n{begun}; {after}; at most {most} MiB; refused objects: {answers.count(422)}")  # noqa: T201  # figures to read
    assert json.loads(installed.finished("late", QUIET)) == ["200", quiet.client_id], _words_about_late(installed)
    assert {answer: many - before.get(answer, 0) for answer, many in after.items() if answer != own} == {}
    assert after[own] > before[own] + SECONDS
    assert installed.restarts() == restarts
    assert {name: mib for name, mib in most.items() if mib >= HALF_LIMITS_MIB[name]} == {}


def _post(installed: Cluster, path: str, body: bytes) -> int:
    return installed.api.post(path, content=body, headers={"Content-Type": "application/json"}).status_code


def _words_about_late(installed: Cluster) -> str:
    """Return what logs and objects say of the pod `late`, for the message of a failure."""
    lines = [
        line
        for name in HALF_LIMITS_MIB
        for line in installed.kubectl("logs", "-l", f"component={name}", "--tail=-1", "--timestamps").splitlines()
        if f"{QUIET}/late" in line or '"late"' in line
    ]
    status = installed.pod_status("late", QUIET)
    assigned = installed.api.get(ASSIGNED).json()["items"]
    times = [one["metadata"]["creationTimestamp"] for one in assigned if one["spec"]["pod"] == "late"]
    return "\n".join([*lines, f"assigned identities made at {times}", json.dumps(status)])


def _assigned_to(installed: Cluster, namespace: str) -> list[str]:
    found = installed.api.get(ASSIGNED).raise_for_status().json()["items"]
    return [one["metadata"]["name"] for one in found if one["spec"]["podNamespace"] == namespace]
