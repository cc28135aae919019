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
    """Return definitions whose status has no conditions, as in aad-pod-identity."""
    plain = copy.deepcopy(definitions)
    for definition in plain:
        for version in definition["spec"]["versions"]:
            del version["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"]["conditions"]
    return plain


def role() -> list[tuple[str, dict[str, Any]]]:
    """Return aad-pod-identity's role for MIC's account, as resources and objects."""
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


async def test_under_upstreams_role_and_definitions_all_of_upstream_works(
    tmp_path: Path, definitions: list[dict[str, Any]]
) -> None:
    """MIC leads, assigns and removes; what needs more rights is off, with one warning each that names the right."""
    async with staged(tmp_path, without_conditions(definitions)) as stage:
        for resource, obj in role():
            stage.kubernetes.storage.create(resource, obj)
        stage.use_account("default", ACCOUNT)
        async with member(stage, "a", "--conditions=all"):
            pod = make.pod()
            stage.add(make.node(), make.identity(), make.binding(), pod)
            await stage.until(lambda: stage.states() == {"web-default-reader": "Assigned"}, "Assigned")
            await stage.until(lambda: ("Normal", "binding applied") in stage.events(), "the event")
            log = tmp_path / "a.log"
            warning = "conditions are not written on azureidentitybindings"
            await stage.until(lambda: warning in log.read_text(), "the warnings")
            stage.remove_pod(pod)
            await stage.until(lambda: not stage.states() and not any(stage.identities.values()), "removal")
            text = log.read_text()
            assert text.count("election without a Lease") == 1
            assert text.count("conditions are not written on azureidentities") == 1
            assert text.count(warning) == 1
            assert 'cannot patch resource "azureidentities"' in text
            assert 'resource "leases"' in text


async def test_a_mic_that_may_not_read_its_lock_is_not_ready(tmp_path: Path, definitions: list[dict[str, Any]]) -> None:
    """Such a MIC can never lead: its readiness page and its log name the missing right."""
    async with staged(tmp_path, definitions) as stage:
        for resource, obj in role():
            rules = [rule for rule in obj.get("rules", ()) if rule["resources"] != ["endpoints"]]
            stage.kubernetes.storage.create(resource, obj | ({"rules": rules} if rules else {}))
        stage.use_account("default", ACCOUNT)
        async with member(stage, "a") as mic:
            log = tmp_path / "a.log"
            await stage.until(lambda: 'cannot get resource "endpoints"' in log.read_text(), "the warning")
            assert "WARNING" in next(line for line in log.read_text().splitlines() if '"endpoints"' in line).upper()
            page = await mic.page("/readyz")
            assert page.startswith("cannot stand for election: ")
            assert 'cannot get resource "endpoints"' in page


async def test_the_command_takes_identities_off_and_leaves_the_lock_to_whoever_comes(
    tmp_path: Path, definitions: list[dict[str, Any]]
) -> None:
    """`mic --uninstall`, which the chart's hook runs after MIC was killed, removes all; the next MIC begins anew."""
    async with staged(tmp_path, definitions) as stage:
        async with member(stage, "a"):
            stage.add(make.node(), make.identity(), make.binding(), make.pod())
            await stage.until(lambda: stage.states() == {"web-default-reader": "Assigned"}, "Assigned")
        assert any(stage.identities.values())
        async with member(stage, "hook", "--uninstall") as hook, asyncio.timeout(60):
            assert await hook.process.wait() == 0
        log = (tmp_path / "hook.log").read_text()
        assert "1 assigned identities were removed" in log
        assert not any(stage.identities.values())
        assert not stage.states()
        assert stage.leader() == ""
        async with member(stage, "next"):
            await stage.until(lambda: stage.leader() == "next", "the next MIC leads")
            await stage.until(lambda: stage.states() == {"web-default-reader": "Assigned"}, "Assigned anew")
            assert any(stage.identities.values())


async def test_an_allow_list_that_cannot_be_read_ends_mic(tmp_path: Path, definitions: list[dict[str, Any]]) -> None:
    """Without the right to read namespaces MIC ends with one sentence and exit status 2, before it leads."""
    async with staged(tmp_path, definitions) as stage:
        for resource, obj in role():
            stage.kubernetes.storage.create(resource, obj)
        stage.use_account("default", ACCOUNT)
        async with member(stage, "a", "--namespace-allow-list") as mic, asyncio.timeout(60):
            assert await mic.process.wait() == 2
        log = (tmp_path / "a.log").read_text()
        assert "error: --namespace-allow-list needs the right to list and watch namespaces" in log
        assert "Traceback" not in log
        assert stage.leader() == ""
