"""Runs the demo: a fresh lab, the steps in order, one sentence at the end.

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
from podidentity_lab import environment, up
from podidentity_lab.data import FILES, MANIFEST
from podidentity_lab.demo import az, elsewhere, promises, proofs, story
from podidentity_lab.demo.admin import Admin
from podidentity_lab.demo.az import AzAdmin
from podidentity_lab.demo.narration import Narrator
from podidentity_lab.demo.stage import Stage
from podidentity_lab.settings import KubernetesKind, LabSettings

FIRST_NODE = "node-0"
PATIENCE_SECONDS: dict[KubernetesKind, float] = {"embedded": 60.0, "real": 180.0}
"""How long a step waits for one condition: on a busy machine, kubelets and containers take their time."""

Step = tuple[str, Callable[[Stage], None]]

WALK_THROUGH: tuple[Step, ...] = (
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
OFF_AZURE: tuple[Step, ...] = (
    ("A cluster that is not on Azure", elsewhere.no_machine),
    ("Install the broker", elsewhere.install_broker),
    ("One identity, one credential, one grant", elsewhere.trust_and_grant),
    ("Two namespaces ask, one may", elsewhere.two_namespaces),
)
CHAPTERS = ((WALK_THROUGH, False), (OFF_AZURE, True))
"""The steps of each chapter, and whether its lab is one that is not on Azure. Each chapter has a lab of its own."""
STEPS: tuple[Step, ...] = tuple(step for steps, _ in CHAPTERS for step in steps)


def run(
    files: Path = FILES,
    kubernetes: KubernetesKind = "embedded",
    narrator: Narrator | None = None,
) -> int:
    """Run every step, each chapter in a lab of its own; return 0 when all passed, else 1. The labs end in any case.

    `files` has the manifests, at their paths in the repository.
    """
    narrator = narrator or Narrator()
    narrator.say("podidentity demo: the walk-through of 2018, on this machine, without an Azure account")
    start, passed = time.monotonic(), 0
    try:
        for steps, off_azure in CHAPTERS:
            begin, previous = time.monotonic(), passed
            with set_up(files, narrator, kubernetes, off_azure=off_azure) as stage:
                took = time.monotonic() - begin
                narrator.say(f"the lab is up after {took:.1f} s; its logs: {stage.environment['LAB_LOGS']}")
                passed += play(stage, steps, previous, len(STEPS))
            if passed < previous + len(steps):
                break
    except KeyboardInterrupt:
        narrator.say("\ndemo: interrupted; its lab is down")
        raise
    narrator.end(f"demo: {passed} of {len(STEPS)} steps passed in {time.monotonic() - start:.0f} s")
    return 0 if passed == len(STEPS) else 1


@contextlib.contextmanager
def set_up(
    files: Path, narrator: Narrator, kubernetes: KubernetesKind = "embedded", *, off_azure: bool = False
) -> Iterator[Stage]:
    """Start a lab and yield a stage in it; the lab ends with the body. Raises `LabError` and `HostError`."""
    if not (files / MANIFEST.relative_to(FILES)).exists():
        raise LabError(f"{files} has no {MANIFEST.relative_to(FILES)}; name a directory laid out as the repository is")
    kubectl, name = _kubectl(), f"demo-{os.getpid()}"
    with up.running(LabSettings(name, kubernetes=kubernetes, off_azure=off_azure), narrator.say) as lab:
        variables = {**_plain(), **environment.variables(lab.directory)}
        with contextlib.closing(_admin(variables, narrator)) as admin:
            facts, patience = {"lab": name, "node": FIRST_NODE}, PATIENCE_SECONDS[kubernetes]
            yield Stage(variables, narrator, admin, files, kubectl, facts, patience)


def _admin(variables: Mapping[str, str], narrator: Narrator) -> Admin:
    program = az.find()
    if program is None:
        narrator.say("az is not on PATH: what az would send, the demo sends itself")
        return Admin(variables)
    narrator.say(f"az commands are typed to the real one, {program}, through the lab's proxy")
    return AzAdmin(variables, program)


def play(stage: Stage, steps: Sequence[Step], previous: int = 0, total: int = 0) -> int:
    """Play the steps until one fails; return how many passed. A failure is printed with the place of the logs.

    `previous` steps of `total` were played before; without them, these steps are all.
    """
    for number, (title, step) in enumerate(steps, start=previous + 1):
        stage.narrator.step(number, total or len(steps), title)
        try:
            step(stage)
        except (LabError, subprocess.TimeoutExpired) as error:
            message = str(error)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            message = f"an answer has not the shape that was expected: {type(error).__name__} {error}"
        else:
            continue
        stage.narrator.show_failure(f"step {number}, {title}: {message}. {_keep_logs(stage.environment)}")
        return number - 1 - previous
    return len(steps)


def _keep_logs(of_lab: Mapping[str, str]) -> str:
    """Copy the lab's logs to a place that outlives it; return the sentence that says where they are."""
    try:
        place = tempfile.mkdtemp(prefix="podidentity-demo-logs-")
        shutil.copytree(of_lab["LAB_LOGS"], place, dirs_exist_ok=True)
    except (OSError, shutil.Error) as error:
        return f"The logs are lost: {error}"
    return f"The logs are in {place}"


def _plain() -> dict[str, str]:
    """Return what the demo's programs get of the user's environment: enough to find them and the lab, no proxy."""
    names = ("PATH", "PYTHONPATH", "HOME", "LANG", "PODIDENTITY_LAB_HOME", "XDG_RUNTIME_DIR")
    return {"PATH": os.defpath, "HOME": "/", **{name: os.environ[name] for name in names if name in os.environ}}


def _kubectl() -> str:
    """Return the path of kubectl: the one of PATH, else the one that the lab's own dependencies bring."""
    neighbour = Path(sys.executable).with_name("kubectl")
    program = shutil.which("kubectl") or (str(neighbour) if neighbour.exists() else None)
    if program is None:
        raise LabError("kubectl is neither on PATH nor installed; install podidentity-lab again")
    return program
