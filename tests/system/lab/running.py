"""A lab as its users have it: started by the command, used with kubectl, in a directory of the test's own."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, Self

import pytest

import podidentity
import podidentity_lab
from processes import command_lines
from waiting import until

Json = dict[str, Any]
KUBECTL = shutil.which("kubectl") or str(Path(sys.executable).with_name("kubectl"))
WAIT_SECONDS = 30.0
NOBODY = 65534
_KINDS = ("net", "mnt", "pid", "uts", "ipc")


@dataclass
class User:
    """Who runs the lab: a Python, and what stands before it to become that user."""

    python: tuple[str, ...] = (sys.executable,)
    environment: dict[str, str] = field(default_factory=dict)

    def command(self, *words: str) -> list[str]:
        """Return the `podidentity lab` command of this user."""
        return [*self.python, "-m", "podidentity", "lab", *words]


def nobody() -> User | str:
    """Return a user without rights, or why there is none: it needs a Python and packages that everybody may read."""
    if os.geteuid() != 0:
        return User()
    python = f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}"
    if not Path(python).exists():
        return f"{python} is missing: root's own Python cannot be run by another user"
    packages = [
        *(str(Path(package.__path__[0]).parent) for package in (podidentity, podidentity_lab)),
        *(path for path in sys.path if path.endswith("site-packages")),
    ]
    become = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--")
    variables = {"PYTHONPATH": ":".join(packages), "PYTHONDONTWRITEBYTECODE": "1"}
    probe = [*become, python, "-c", "import podidentity, dnslib, uvicorn, cryptography.x509, click"]
    told = subprocess.run(probe, env=variables, capture_output=True, text=True, check=False, timeout=30)
    if told.returncode:
        return f"another user cannot import the project: {told.stderr.strip().splitlines()[-1]}"
    return User((*become, python), variables)


@contextlib.contextmanager
def home_of_nobody() -> Iterator[tuple[Path, User]]:
    """Yield a directory for the labs of a user without rights, and the user; pytest's own directory hides its own."""
    user = nobody()
    if isinstance(user, str):
        missing(user)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        home = Path(folder) / "labs"
        home.mkdir(mode=0o700)
        if os.geteuid() == 0:
            Path(folder).chmod(0o755)
            os.chown(home, NOBODY, NOBODY)
        yield home, user


def missing(what: str) -> NoReturn:
    """Skip, loudly, where something is missing on this machine; where `CI` is set, fail."""
    if os.environ.get("CI"):
        pytest.fail(what)
    pytest.skip(what)


@dataclass
class Lab:
    """A lab below `home`."""

    home: Path
    name: str
    user: User = field(default_factory=User)
    variables: dict[str, str] = field(default_factory=dict)

    @property
    def directory(self) -> Path:
        """Its files."""
        return self.home / self.name

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a `podidentity lab` command to its end."""
        command = self.user.command(*words)
        return subprocess.run(
            command, env=self.environment(), capture_output=True, text=True, check=False, timeout=WAIT_SECONDS * 2
        )

    @contextlib.contextmanager
    def started(self, *words: str) -> Iterator[subprocess.Popen[str]]:
        """A `lab up` that stays; it is killed when the test leaves it."""
        # Whatever becomes of the tests: no lab outlives them.
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig=KILL", "--", *self.user.command("up", "--name", self.name, *words)],
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        with process:
            try:
                yield process
            finally:
                process.kill()

    def environment(self) -> dict[str, str]:
        """Return what a shell of the user has."""
        return {
            "PATH": os.environ["PATH"],
            "PODIDENTITY_LAB_HOME": str(self.home),
            "HOME": "/",
            **self.user.environment,
        }

    def enter(self) -> None:
        """Read what `lab env` prints, as a shell would."""
        script = self.run("env", "--name", self.name)
        assert script.returncode == 0, script.stderr
        told = subprocess.run(
            ["/bin/sh", "-c", f"{script.stdout}\nenv -0"],
            env={"PATH": os.environ["PATH"], "HOME": "/"},
            capture_output=True,
            text=True,
            check=True,
        )
        self.variables = dict(item.split("=", 1) for item in told.stdout.split("\0") if "=" in item)

    def kubectl(self, *words: str, stdin: str | None = None) -> str:
        """Run kubectl in the lab's environment, successfully; return its output."""
        done = self.try_kubectl(*words, stdin=stdin)
        assert done.returncode == 0, f"kubectl {' '.join(words)}: {done.stderr}"
        return done.stdout

    def try_kubectl(self, *words: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run kubectl in the lab's environment, whatever comes of it."""
        return subprocess.run(
            [KUBECTL, *words], env=self.variables, input=stdin, capture_output=True, text=True, check=False, timeout=60
        )

    def curl(self, url: str) -> tuple[int, str]:
        """GET with the lab's environment, as a user's shell would; status 0 when there was no answer."""
        command = ["curl", "-sS", "-m", "10", "-w", "\n%{http_code}", url]
        done = subprocess.run(command, env=self.variables, capture_output=True, text=True, check=False, timeout=30)
        body, _, status = done.stdout.rpartition("\n")
        return int(status or 0), body or done.stderr

    def create(self, *objects: Json) -> None:
        """`kubectl create`."""
        self.kubectl("create", "-f", "-", stdin="\n".join(map(json.dumps, objects)))

    def get(self, *words: str) -> Json:
        """`kubectl get ... -o json`."""
        told: Json = json.loads(self.kubectl("get", *words, "-o", "json"))
        return told

    def finished(self, name: str) -> str:
        """Wait for a pod's end; what its first container wrote."""
        until(lambda: self.phase(name) in {"Succeeded", "Failed"}, f"pod {name} to end")
        return self.kubectl("logs", name)

    def phase(self, name: str) -> str:
        """Return a pod's phase."""
        return str(self.get("pod", name)["status"].get("phase"))

    def is_ready(self, name: str) -> bool:
        """Whether a pod is Ready."""
        conditions = self.get("pod", name)["status"].get("conditions") or ()
        return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)

    def container(self, name: str) -> Json:
        """Return the status of a pod's first container."""
        listed = self.get("pod", name)["status"].get("containerStatuses") or [{}]
        return {"state": {}, "restartCount": 0, **listed[0]}

    def events(self, name: str) -> list[str]:
        """Return reason and message of each event about a pod."""
        items = self.get("events")["items"]
        return [f"{one['reason']}: {one['message']}" for one in items if one["involvedObject"]["name"] == name]

    def run_pod(self, pod: Json) -> str:
        """Create a pod and wait for its end; return what it wrote."""
        self.create(pod)
        return self.finished(pod["metadata"]["name"])


@contextlib.contextmanager
def lab(home: Path, name: str, *words: str, user: User | None = None, seconds: float = WAIT_SECONDS) -> Iterator[Lab]:
    """A lab that is up, after `seconds` at most, and its environment."""
    one = Lab(home, name, user or User())
    with one.started(*words) as process:
        until(lambda: (one.directory / "lab.json").exists() or process.poll() is not None, "the lab", seconds)
        assert process.poll() is None, process.communicate()
        one.enter()
        try:
            yield one
        finally:
            stopped = one.run("down", "--name", name)
        process.wait(WAIT_SECONDS * 2)
        assert (stopped.returncode, process.returncode) == (0, 0), stopped.stderr


def pod(name: str, script: str = "", **container: Any) -> Json:
    """Return a pod that runs a shell script once."""
    spec: Json = {"name": "main", "image": "podidentity/lab-tools:1"}
    if script:
        spec["command"] = ["/bin/sh", "-c", script]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "labels": {"app": name}},
        "spec": {"restartPolicy": "Never", "containers": [{**spec, **container}]},
    }


def object_of(kind: str, name: str, content: Mapping[str, str]) -> Json:
    """Return a Secret (`stringData`) or ConfigMap (`data`)."""
    key = "stringData" if kind == "Secret" else "data"
    metadata = {"name": name, "namespace": "default"}
    return {"apiVersion": "v1", "kind": kind, "metadata": metadata, key: dict(content)}


class Namespaces:
    """The namespaces, other than ours and those of the process `around`, that processes have made for themselves.

    They are held open: the kernel gives the number of one that is gone to the next that anybody makes.
    """

    def __init__(self, around: int | None = None) -> None:
        self._held: dict[str, int] = {}
        self._around = {"self", str(around or "self")}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._held.values():
            os.close(descriptor)

    def add_below(self, root: int) -> Self:
        """Add those of a process and all its descendants, as they are at this moment."""
        ours = set().union(*(_namespaces(Path("/proc", process)) for process in self._around))
        for process in _tree(root):
            for kind in _KINDS:
                with contextlib.suppress(OSError):
                    self._hold(os.open(process / "ns" / kind, os.O_RDONLY), ours)
        return self

    def _hold(self, descriptor: int, ours: set[str]) -> None:
        name = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        if name in ours or name in self._held:
            os.close(descriptor)
        else:
            self._held[name] = descriptor

    def members(self) -> list[str]:
        """Return the processes that are in one of them."""
        return [path.name for path in Path("/proc").glob("[0-9]*") if _namespaces(path) & self._held.keys()]


def _tree(root: int) -> list[Path]:
    parents = {int(path.name): parent_of(path) for path in Path("/proc").glob("[0-9]*")}
    tree = {root}
    while more := {pid for pid, parent in parents.items() if parent in tree} - tree:
        tree |= more
    return [Path("/proc", str(pid)) for pid in tree]


def _namespaces(process: Path) -> set[str]:
    found = set()
    for kind in _KINDS:
        with contextlib.suppress(OSError):
            found.add(str((process / "ns" / kind).readlink()))
    return found


def parent_of(process: Path) -> int:
    """Return the parent of a process in /proc; 0 when it ended."""
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError, ValueError):
        return 0


def processes_of(home: Path) -> list[str]:
    """Command lines of living processes that name this directory."""
    lines = {pid: b" ".join(words).decode(errors="replace") for pid, words in command_lines().items()}
    return [line for pid, line in lines.items() if str(home) in line and pid != os.getpid()]
