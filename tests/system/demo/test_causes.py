"""Each step of the demo fails when its cause is missing: a step that passed all the same would prove nothing."""

import contextlib
import dataclasses
import io
import json
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console

from podidentity_lab.data import FILES
from podidentity_lab.demo import elsewhere, promises, proofs, running, story
from podidentity_lab.demo.admin import Admin
from podidentity_lab.demo.asking import start_asking
from podidentity_lab.demo.narration import Narrator
from podidentity_lab.demo.stage import Stage

pytestmark = [pytest.mark.root, pytest.mark.timeout(400)]  # mostly waiting, which is long on a busy machine
VAIN_SECONDS = 3.0
ROLE = promises.ROLE
_BINDING = "AzureIdentityBinding"
Step = Callable[[Stage], None]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """One lab for all steps, in the demo's order: each step fails first, then passes."""
    home = tmp_path_factory.mktemp("labs")
    home.chmod(0o700)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PODIDENTITY_LAB_HOME", str(home))
        patched.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("kept")))
        with running.set_up(FILES, Narrator(Console(file=io.StringIO()))) as one:
            yield one


@dataclasses.dataclass
class Vain(Stage):
    """A stage that does not wait long for `awaited`, which will not happen, and as usual for everything else."""

    awaited: str = ""

    def until(self, what: str, condition: Callable[[], object]) -> None:
        """Wait as the stage does."""
        with self._patience_for(f"waited for {what}"):
            super().until(what, condition)

    def rollout(self, *workloads: str, namespace: str = "") -> None:
        """Wait as the stage does."""
        with self._patience_for("rollout status"):
            super().rollout(*workloads, namespace=namespace)

    @contextlib.contextmanager
    def _patience_for(self, what: str) -> Iterator[None]:
        before = self.patience_seconds
        if re.search(self.awaited, what):
            self.patience_seconds = VAIN_SECONDS
        try:
            yield
        finally:
            self.patience_seconds = before


def plays(stage: Stage, step: Step) -> str:
    """Play one step; return its error message, "" when it passed."""
    told = io.StringIO()
    heard = dataclasses.replace(stage, narrator=Narrator(Console(file=told, soft_wrap=True, width=10_000)))
    passed = running.play(heard, [("the step", step)])
    failures = re.findall(r"FAILED +(.*)", told.getvalue())
    assert len(failures) == 1 - passed, told.getvalue()
    return failures[0] if failures else ""


def fails(stage: Stage, step: Step, expected: str) -> None:
    """Hold that the step fails soon, with this reason."""
    known = {one.name: getattr(stage, one.name) for one in dataclasses.fields(stage)}
    said = plays(Vain(**known, awaited=expected.replace(f"waited {VAIN_SECONDS:g} s", "waited")), step)
    assert re.search(expected, said), f"{step.__name__} said: {said!r}"


def passes(stage: Stage, *steps: Step) -> None:
    """Hold that the steps pass."""
    for step in steps:
        assert plays(stage, step) == "", step.__name__


@contextlib.contextmanager
def nobody(stage: Stage) -> Iterator[Stage]:
    """A stage whose administrator cannot sign in."""
    with contextlib.closing(Admin({**stage.environment, "LAB_OWNER_CLIENT_SECRET": "wrong"})) as admin:
        yield dataclasses.replace(stage, admin=admin)


def delete(stage: Stage, *objects: str) -> None:
    """Delete objects that a failed step left."""
    stage.quietly("delete", "--ignore-not-found", *objects)


def test_the_vault_and_its_secret(stage: Stage) -> None:
    """Without a sign-in there is no group, without a group no vault, without a vault no secret."""
    with nobody(stage) as other:
        fails(other, story.create_group, "signing in .* answered 401")
    fails(stage, story.create_vault, "answered 404: .*ResourceGroupNotFound")
    passes(stage, story.create_group)
    fails(stage, story.set_secret, "got no answer|answered 404")
    passes(stage, story.create_vault, story.set_secret)


def test_the_installation(stage: Stage, tmp_path: Path) -> None:
    """The steps fail with an image that does not exist, without the definitions, and when no packet is counted."""
    passes(stage, proofs.without_podidentity)
    for name in ("deploy", "examples"):
        shutil.copytree(FILES / name, tmp_path / name)
    manifest = tmp_path / "deploy/infra/deployment-rbac.yaml"
    manifest.write_text(re.sub(r"image: \S+", "image: nobody/has:this", manifest.read_text()))
    stage.facts["client_id"] = str(uuid.uuid4())
    fails(stage, story.create_azure_identity, "no matches for kind|error validating")
    fails(stage, story.create_binding, "no matches for kind|error validating")
    fails(dataclasses.replace(stage, files=tmp_path), story.install, "rollout status")
    delete(stage, "-f", str(manifest))
    passes(stage, story.install)
    delete(stage, "pod/early")
    fails(stage, proofs.without_podidentity, "packets counted on node-0: expected more than")


def test_identity_and_rights(stage: Stage) -> None:
    """The steps fail without a sign-in, and for a principal that does not exist."""
    with nobody(stage) as other:
        fails(other, story.create_identity, "signing in .* answered 401")
    passes(stage, story.create_identity)
    stranger = dataclasses.replace(
        stage, facts={**stage.facts, "client_id": str(uuid.uuid4()), "principal_id": str(uuid.uuid4())}
    )
    fails(stranger, story.grant_reader, "PrincipalNotFound")
    fails(stranger, story.set_policy, "has not the shape that was expected")
    with nobody(stage) as other:
        fails(other, story.let_the_cluster_use_it, "signing in .* answered 401")
    passes(stage, story.grant_reader, story.let_the_cluster_use_it, story.create_azure_identity)


def test_the_application(stage: Stage) -> None:
    """Without a binding nothing is assigned; without the access policy there is no secret."""
    fails(stage, story.deploy_app, "waited 3 s for the identity of the pod to be Assigned")
    delete(stage, "-f", "examples/keyvault-app/keyvaultsample.yaml")
    passes(stage, story.create_binding, story.deploy_app)
    fails(stage, story.fetch_secret, "/keyvault to answer 200")
    passes(stage, story.set_policy, story.fetch_secret)


def test_the_neighbour(stage: Stage) -> None:
    """An exception lets the neighbour past NMI to the node's token, and the step notices that."""
    exception = {
        "apiVersion": "aadpodidentity.k8s.io/v1",
        "kind": "AzurePodIdentityException",
        "metadata": {"name": "neighbour", "namespace": "default"},
        "spec": {"podLabels": {"app": "neighbour"}},
    }
    stage.quietly("create", "-f", "-", stdin=json.dumps(exception))
    fails(stage, proofs.without_the_label, "neighbour's token request: expected 400, got 200")
    delete(stage, "azurepodidentityexception/neighbour", "pod/neighbour", "pod/node-itself")
    passes(stage, proofs.without_the_label)


class Forgetful(Admin):
    """An administrator who says that roles are assigned, and assigns none."""

    def assign_role(self, role: str, principal: str, scope: str) -> dict[str, object]:
        """Do nothing."""
        del role, principal
        return {"properties": {"scope": scope}}


def test_the_second_application(stage: Stage) -> None:
    """Without the role its identity is not assigned.

    With rights on the vault, the step that expects a refusal fails.
    """
    with contextlib.closing(Forgetful(stage.environment)) as admin:
        ungranted = dataclasses.replace(stage, admin=admin)
        fails(ungranted, proofs.second_identity, "waited 3 s for pod second-app to finish")
        stage.until("the refusal", lambda: any(ROLE in one for one in stage.events(_BINDING, proofs.OTHER)))
        delete(stage, "pod/second-app", f"azureidentitybinding/{proofs.OTHER}", f"azureidentity/{proofs.OTHER}")
        # MIC forgets a refusal with the identity's last pod; before that the next step would have to wait for a retry.
        stage.until("the assignment to go", lambda: proofs.OTHER not in stage.assigned_states())
        passes(stage, proofs.second_identity)
        stage.admin.set_policy(story.GROUP, story.VAULT, stage.get("azureidentity", proofs.OTHER)["spec"]["clientID"])
        delete(stage, "pod/second-app")
        opened = dataclasses.replace(ungranted, facts=dict(stage.facts))  # the role is there since the step passed
        passes(opened, proofs.second_identity)
    fails(opened, proofs.refused_by_the_vault, "second application: expected 403, got 200")
    passes(stage, proofs.refused_by_the_vault)


def test_the_forgotten_role(stage: Stage) -> None:
    """The step waits for a complaint about a missing role, and fails when the role is there."""
    made = stage.admin.create_identity(story.GROUP, promises.FORGOTTEN, story.LOCATION)
    granted = stage.admin.assign_role(ROLE, stage.admin.cluster_principal(), made["id"])
    fails(stage, promises.without_the_role, "waited 3 s for an event")
    # A change that is still under way would put the identity there after all.
    stage.until("the assignment", lambda: stage.assigned_states().get(promises.FORGOTTEN) == "Assigned")
    delete(stage, f"pod/{promises.FORGOTTEN}", f"azureidentitybinding/{promises.FORGOTTEN}")
    stage.until("the assignment to go", lambda: promises.FORGOTTEN not in stage.assigned_states())
    stage.until("the identity to leave the scale set", lambda: not promises.carries(stage, promises.FORGOTTEN))
    stage.admin.delete_role_assignment(granted["id"])
    passes(stage, promises.without_the_role)


def test_the_deleted_binding(stage: Stage) -> None:
    """With a second binding of the identity the tokens do not end, and the step fails."""
    binding = {
        "apiVersion": "aadpodidentity.k8s.io/v1",
        "kind": "AzureIdentityBinding",
        "metadata": {"name": "another", "namespace": "default"},
        "spec": {"azureIdentity": proofs.OTHER, "selector": proofs.OTHER},
    }
    stage.quietly("create", "-f", "-", stdin=json.dumps(binding))
    fails(stage, promises.binding_deleted, "waited 3 s for refusals to watcher")
    delete(stage, f"pod/{promises.WATCHER}")
    binding["metadata"] = {"name": proofs.OTHER, "namespace": "default"}
    stage.quietly("create", "-f", "-", stdin=json.dumps(binding))
    delete(stage, "azureidentitybinding/another")
    passes(stage, promises.binding_deleted)


def test_the_last_pod(stage: Stage) -> None:
    """While another pod uses the identity it stays on the scale set, and the step fails."""
    start_asking(stage, "another-user", {"aadpodidbinding": story.IDENTITY})
    fails(stage, promises.last_pod_gone, f"waited 3 s for {story.IDENTITY} to leave the scale set")
    delete(stage, "pod/another-user")
    stage.quietly("scale", f"deployment/{story.APP}", "--replicas=1")
    stage.rollout(f"deployment/{story.APP}")
    passes(stage, promises.last_pod_gone)


def test_the_interception(stage: Stage) -> None:
    """Without NMI and its guard pods reach the metadata service, and the step that counts packets there fails."""
    passes(stage, promises.nmi_comes_and_goes, proofs.no_packet_reached_imds)
    delete(stage, "daemonset/nmi")
    stage.quietly("create", "-f", "deploy/infra/uninstall.yaml")
    names = dict.fromkeys(stage.packets())

    def is_open() -> bool:
        before = stage.packets()
        stage.run_in_pod(f"prober-{uuid.uuid4().hex[:8]}", proofs.ASK, {})
        return stage.packets() != before

    stage.until(f"the interception to be gone from one of {list(names)}", is_open)
    fails(stage, proofs.no_packet_reached_imds, "at the metadata service since NMI runs: expected")


def test_a_cluster_on_azure(stage: Stage) -> None:
    """The step for clusters outside Azure fails, since these nodes have a provider."""
    fails(stage, elsewhere.no_machine, "providers of the nodes: expected")


def test_a_cluster_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps fail without a tenant, without a sign-in, without a grant, and with a grant for everybody."""
    monkeypatch.setenv("PODIDENTITY_LAB_HOME", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    tmp_path.chmod(0o700)
    with running.set_up(FILES, Narrator(Console(file=io.StringIO())), off_azure=True) as stage:
        passes(stage, elsewhere.no_machine)
        homeless = dataclasses.replace(stage, environment={**stage.environment, "LAB_TENANT_ID": "nowhere"})
        fails(homeless, elsewhere.install_broker, "rollout status .* failed")
        delete(stage, *(f"namespace/{name}" for name in (elsewhere.ORDERS, elsewhere.GUESTS, elsewhere.BROKER)))
        passes(stage, elsewhere.install_broker)
        with nobody(stage) as other:
            fails(other, elsewhere.trust_and_grant, "signing in .* answered 401")
        passes(stage, elsewhere.trust_and_grant)
        binding = f"identity-{stage.facts['shared']}-{elsewhere.ORDERS}"
        delete(stage, f"clusterrolebinding/{binding}")
        fails(stage, elsewhere.two_namespaces, f"appid in the token of {elsewhere.ORDERS}: expected")
        passes(stage, elsewhere.trust_and_grant)
        role, group = f"--clusterrole=identity-{stage.facts['shared']}", "--group=system:serviceaccounts"
        stage.quietly("create", "clusterrolebinding", "everybody", role, group)
        stage.until("everybody to be granted it", lambda: "appid" in elsewhere._ask(stage, elsewhere.GUESTS))
        fails(stage, elsewhere.two_namespaces, f"whether the refusal of {elsewhere.GUESTS} says")
        delete(stage, "clusterrolebinding/everybody")
        stage.until("the grant to end", lambda: "message" in elsewhere._ask(stage, elsewhere.GUESTS))
        passes(stage, elsewhere.two_namespaces)


def test_every_step_of_the_demo_is_here() -> None:
    """Each step fails in a test above, or is listed as one that fails otherwise."""
    text = Path(__file__).read_text()
    played = {f"{step.__module__.rpartition('.')[2]}.{step.__name__}" for _, step in running.STEPS}
    assert {name for name in played if f"fails(stage, {name}," not in text and name not in _FAILS_OTHERWISE} == set()


_FAILS_OTHERWISE = {
    "elsewhere.install_broker",
    "elsewhere.trust_and_grant",
    "story.create_group",
    "story.create_identity",
    "story.grant_reader",
    "story.install",
    "story.let_the_cluster_use_it",
    "story.set_policy",
    "proofs.second_identity",
    "proofs.refused_by_the_vault",
    "promises.nmi_comes_and_goes",
}
"""Steps whose failure above is on another stage, or found in another way."""
