"""A lab's coming and going: as root or not, side by side, by command, by signal and by SIGKILL."""

import contextlib
import json
import os
import pty
import signal
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from podidentity.cli import main as cli
from podidentity_lab import directory
from podidentity_lab.demo.admin import Admin
from processes import command_lines
from system.lab.machine import machine
from system.lab.running import KUBECTL, NOBODY, Lab, home_of_nobody, lab, missing, pod, processes_of
from waiting import until

pytestmark = pytest.mark.root
METADATA = "http://169.254.169.254/metadata/instance?api-version=2021-02-01"
CONTROL = f"curl -sS -m 5 -H Metadata:true '{METADATA}'"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A directory for labs."""
    place = tmp_path / "labs"
    place.mkdir(mode=0o700)
    return place


@pytest.fixture
def other_user() -> Iterator[Lab]:
    """A lab of somebody who is not root, in a directory of theirs that pytest's own does not hide."""
    with home_of_nobody() as (place, user):
        yield Lab(place, "one", user)
        assert not processes_of(place)


def test_a_lab_comes_up_and_goes_without_a_trace(home: Path, tmp_path: Path) -> None:
    """A lab touches nothing of the machine's network and mounts, and `down` leaves nothing of it."""
    with machine(tmp_path) as around:
        before = around.state()
        with lab(home, "one", user=around.user) as up:
            listed = subprocess.run(
                [*around.entry, KUBECTL, "get", "nodes", "-o", "name"],
                env=up.variables,
                capture_output=True,
                text=True,
                check=True,
            )
            assert listed.stdout.split() == ["node/node-0", "node/node-1"]
            assert around.state() == before
        assert not up.directory.exists()
        assert not processes_of(home)
        assert around.state() == before


def test_another_user_has_a_lab_too(other_user: Lab) -> None:
    """The path is the same without root: pods run and ask the metadata service; `lab run` shows Arc's file."""
    with lab(other_user.home, "one", "--nodes", "1", user=other_user.user) as up:
        told = json.loads(up.run("status", "--name", "one", "--json").stdout)
        assert told["rootless"] is True
        assert "aks-nodepool1-vmss" in up.run_pod(pod("asker", CONTROL))
        with contextlib.closing(Admin(up.variables)) as admin:
            admin.create_group("app", "westeurope")
            admin.create_identity("app", "reader", "westeurope")
        # Inside the lab this user is root: the gateway knows it by its user ID outside.
        curl = ("curl", "-sS", "-m", "20", "-o", "/dev/null", "-w", "%{http_code}", "http://management.azure.com/")
        assert up.run("run", "--name", "one", "--", *curl).stdout not in {"", "000", "403"}
        # The command is the same user, without a right that it did not have; nobody else sees the file.
        script = "id -u; cat /var/opt/azcmagent/tokens/*.key; echo; grep CapEff /proc/self/status; ls -A /var/opt"
        told_by_command = up.run(
            *("run", "--name", "one", "--identity", "reader", "--dialect", "arc", "--", "sh", "-c", script)
        )
        uid, key, capabilities, *neighbours = told_by_command.stdout.splitlines()
        assert (int(uid), len(key)) == (NOBODY if os.geteuid() == 0 else os.geteuid(), 43)
        assert capabilities.split() == ["CapEff:", "0" * 16]
        assert sorted(neighbours) == sorted(["azcmagent", *(path.name for path in Path("/var/opt").iterdir())])
        assert not Path("/var/opt/azcmagent").exists()


@pytest.mark.parametrize("network", ["routed", "bridge"])
def test_without_interception_the_counter_counts(home: Path, network: str) -> None:
    """A pod reaches the metadata service of its own node, and only that node's counter says so."""
    with lab(home, "one", "--virtual-machines", "1", "--network", network) as up:
        asker = pod("asker", CONTROL)
        asker["spec"]["nodeName"] = "node-1"
        assert json.loads(up.run_pod(asker))["compute"]["name"] == "node-1"
        counts = json.loads(up.run("status", "--name", "one", "--json").stdout)["imds_packets"]
        assert counts["node-0"] == 0
        assert counts["node-1"] > 0


def test_two_labs_side_by_side(home: Path) -> None:
    """Two labs, of different shape, have the same addresses and nothing in common."""
    shape = ("--nodes", "3", "--virtual-machines", "1", "--network", "bridge")
    with lab(home, "one", "--nodes", "1") as one, lab(home, "two", *shape) as two:
        one.create(pod("only-here", "true"))
        told = json.loads(two.run("status", "--name", "two", "--json").stdout)
        kinds = [node["machine"].split("/")[7] for node in told["nodes"]]
        assert (told["network"], kinds) == ("bridge", [*["virtualMachineScaleSets"] * 2, "virtualMachines"])
        assert len(two.get("nodes")["items"]) == 3
        assert not two.get("pods")["items"]
        assert one.variables["LAB_TENANT_ID"] != two.variables["LAB_TENANT_ID"]
        listed = one.run("list").stdout
        assert [line.split("\t")[:2] for line in listed.splitlines()] == [["one", "ready"], ["two", "ready"]]


def test_a_detached_lab_stays(home: Path) -> None:
    """With --detach the command returns once the lab is ready, and the lab lives on until `down`."""
    one = Lab(home, "one")
    told = one.run("up", "--detach", "--name", "one", "--nodes", "1")
    try:
        assert (told.returncode, "is ready" in told.stdout) == (0, True)
        one.enter()
        assert one.get("nodes")["items"]
    finally:
        assert one.run("down", "--name", "one").returncode == 0
    assert not processes_of(home)


def test_who_interrupts_a_detached_start_leaves_no_lab(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C before the lab is ready: it does not come up later, unknown to anybody."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setenv("PODIDENTITY_LAB_HOME", str(home))
    monkeypatch.setattr(directory, "all_labs", interrupt)
    with pytest.raises(SystemExit) as ended:
        cli.main(["lab", "up", "--detach", "--name", "one", "--nodes", "1", "--logs", f"{home}-logs"])
    assert ended.value.code == 130
    assert not processes_of(home)


def test_a_shell_in_a_lab_of_its_own(home: Path) -> None:
    """The shell's user has kubectl and the lab's commands; its status is handed on; then the lab is gone."""
    one = Lab(home, "one")
    done = subprocess.run(
        one.user.command("shell", "--name", "one", "--nodes", "1"),
        env={**one.environment(), "SHELL": "/bin/sh"},
        input="podidentity lab list; podidentity lab status | tail -n 1\n"
        "kubectl get nodes -o name; echo $LAB_NAME; exit 7\n",
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    listed, about, *others = done.stdout.splitlines()
    assert listed.startswith("one\tready\t")
    assert about.startswith("lab one, ")
    assert others == ["node/node-0", "one"]
    assert "kubectl create -f deploy/infra/deployment-rbac.yaml" in done.stderr
    assert done.returncode == 7
    assert not one.directory.exists()


def test_what_was_typed_last_is_no_failure(home: Path) -> None:
    """Somebody leaves a shell at a terminal after a command that failed: the lab did well, and `make lab` says so."""
    one = Lab(home, "one")
    leader, follower = pty.openpty()
    done = subprocess.run(
        one.user.command("shell", "--name", "one", "--nodes", "1"),
        env={**one.environment(), "SHELL": "/bin/false"},
        stdin=follower,
        check=False,
        timeout=60,
    )
    os.close(leader)
    os.close(follower)
    assert done.returncode == 0


def test_secrets_are_the_owner_s_alone(home: Path) -> None:
    """What holds a secret can be read by nobody else."""
    with lab(home, "one", "--nodes", "1") as up:
        secret = [up.directory, up.directory / "lab.json", up.directory / "kubeconfig", up.directory / "control.sock"]
        secret += [up.directory / "nodes/node-0/etc/kubernetes/azure.json"]
        assert not [path for path in secret if stat.S_IMODE(path.stat().st_mode) & 0o077]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_lab_in_order(home: Path, number: signal.Signals) -> None:
    """Ctrl-C, kill and the terminal's end: exit status 0, and nothing is left."""
    one = Lab(home, "one")
    with one.started("--nodes", "1") as process:
        until((one.directory / "lab.json").exists, "the lab")
        until(lambda: one.run("env", "--name", "one").returncode == 0, "the lab")
        process.send_signal(number)
        _, said = process.communicate(timeout=20)
    assert (process.returncode, "is down" in said) == (0, True)
    assert not one.directory.exists()
    assert not processes_of(home)


def test_the_inner_process_s_death_ends_the_lab(home: Path) -> None:
    """When the lab itself crashes, the command says so with status 1, and pods do not outlive it."""
    one = Lab(home, "one")
    with one.started("--nodes", "1") as process:
        until((one.directory / "lab.json").exists, "the lab")
        one.enter()
        one.create(pod("sleeper", "exec sleep 4321"))
        until(lambda: one.phase("sleeper") == "Running", "the pod")
        inner = next(
            pid
            for pid, words in command_lines().items()
            if words[1:3] == [b"-m", b"podidentity_lab.inside"] and str(home).encode() in b" ".join(words)
        )
        os.kill(inner, signal.SIGKILL)
        _, said = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "error: the lab stopped by itself; " in said
    assert not processes_of(home)


def test_logs_can_outlive_the_lab(home: Path, tmp_path: Path) -> None:
    """With --logs, what containers wrote is there when the lab is gone."""
    with lab(home, "one", "--nodes", "1", "--logs", str(tmp_path / "logs")) as up:
        up.run_pod(pod("talker", "echo hello from the pod"))
    assert (tmp_path / "logs/default_talker_main.log").read_text() == "hello from the pod\n"


def test_a_directory_below_run_works(home: Path) -> None:
    """A lab works in a directory below /run (XDG_RUNTIME_DIR), although the lab mounts a /run of its own."""
    parent = next((path for path in map(Path, ("/run", "/run/lock", "/run/shm")) if os.access(path, os.W_OK)), None)
    if parent is None:
        missing("this user may write nowhere below /run")
    place = parent / f"podidentity-test-{os.getpid()}"
    place.mkdir(mode=0o700)
    try:
        with lab(place / "labs", "one", "--nodes", "1") as up:
            assert up.run_pod(pod("talker", "echo hello")) == "hello\n"
    finally:
        subprocess.run(["rm", "-rf", place], check=True)
    assert home.exists()


def test_a_directory_of_somebody_else_is_refused(tmp_path: Path) -> None:
    """Anybody can make a directory of that name in /tmp: one that others may enter is not used."""
    place = tmp_path / "open"
    place.mkdir()
    place.chmod(0o755)
    told = Lab(place, "one").run("list")
    assert (told.returncode, "is not a directory of yours alone" in told.stderr) == (1, True)


def test_forbidden_user_namespaces_are_explained(other_user: Lab) -> None:
    """Where the kernel forbids user namespaces, one sentence says so and how to allow them."""
    # A namespace in which there may be no further ones; in it we are not root, or a plain one would do.
    words = " ".join(other_user.user.command("up", "--name", "one")[-7:])
    forbid = "echo 0 > /proc/sys/user/max_user_namespaces; exec setpriv --bounding-set=-all"
    become = other_user.user.command()[:-4]
    told = subprocess.run(
        [*become, "unshare", "--user", "--map-root-user", "sh", "-c", f"{forbid} {words}"],
        env=other_user.environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert told.returncode == 3, told.stderr
    assert "does not let you make the lab's namespaces" in told.stderr
    assert "sysctl" in told.stderr
