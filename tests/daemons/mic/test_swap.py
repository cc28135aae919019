"""The swap promise: with aad-pod-identity's own role and definitions, MIC does all that aad-pod-identity does."""

import asyncio
import copy
from pathlib import Path
from typing import Any

import make
import upstreams
from daemons.mic.members import member, staged

ACCOUNT = upstreams.ACCOUNTS["mic"]


def without_conditions(definitions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Definitions whose status has no conditions, as aad-pod-identity's have none."""
    plain = copy.deepcopy(definitions)
    for one in plain:
        for version in one["spec"]["versions"]:
            del version["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"]["conditions"]
    return plain


def role() -> list[tuple[str, dict[str, Any]]]:
    """Aad-pod-identity's role for MIC's account."""
    rbac = "rbac.authorization.k8s.io"
    rules = upstreams.rules(upstreams.MIC_RIGHTS)
    subject = {"kind": "ServiceAccount", "name": ACCOUNT, "namespace": "default"}
    reference = {"apiGroup": rbac, "kind": "ClusterRole", "name": "mic"}
    bound = {"metadata": {"name": "mic"}, "roleRef": reference, "subjects": [subject]}
    return [
        (f"clusterroles.{rbac}", {"kind": "ClusterRole", "metadata": {"name": "mic"}, "rules": rules}),
        (f"clusterrolebindings.{rbac}", {"kind": "ClusterRoleBinding", **bound}),
        ("serviceaccounts", {"kind": "ServiceAccount", "metadata": {"name": ACCOUNT, "namespace": "default"}}),
    ]


def test_under_upstreams_role_and_definitions_all_of_upstream_works(
    tmp_path: Path, definitions: list[dict[str, Any]]
) -> None:
    """It leads, assigns and takes away; what needs more is off, with one warning each that names the right."""

    async def run() -> None:
        async with staged(tmp_path, without_conditions(definitions)) as stage:
            for resource, obj in role():
                stage.kubernetes.storage.create(resource, obj)
            stage.use_account("default", ACCOUNT)
            async with member(stage, "a"):
                pod = make.pod()
                stage.add(make.node(), make.identity(), make.binding(), pod)
                await stage.until(lambda: stage.states() == {"web-default-reader": "Assigned"}, "Assigned")
                await stage.until(lambda: ("Normal", "binding applied") in stage.events(), "the event")
                log = tmp_path / "a.log"
                told = "conditions are not written on azureidentitybindings"
                await stage.until(lambda: told in log.read_text(), "the warnings")
                stage.remove_pod(pod)
                await stage.until(lambda: not stage.states() and not any(stage.carried.values()), "removal")
                text = log.read_text()
                assert text.count("election without a Lease") == 1
                assert text.count("conditions are not written on azureidentities") == 1
                assert text.count(told) == 1
                assert 'cannot patch resource "azureidentities"' in text
                assert 'resource "leases"' in text

    asyncio.run(run())


def test_an_allow_list_that_cannot_be_read_ends_mic(tmp_path: Path, definitions: list[dict[str, Any]]) -> None:
    """Without the right to read namespaces it does not start: one sentence, exit status 2, and nothing is assigned."""

    async def run() -> None:
        async with staged(tmp_path, definitions) as stage:
            for resource, obj in role():
                stage.kubernetes.storage.create(resource, obj)
            stage.use_account("default", ACCOUNT)
            async with member(stage, "a", "--namespace-allow-list") as one, asyncio.timeout(60):
                assert await one.process.wait() == 2
            told = (tmp_path / "a.log").read_text()
            assert "error: --namespace-allow-list needs the right to list and watch namespaces" in told
            assert "Traceback" not in told
            assert stage.leader() == ""

    asyncio.run(run())
