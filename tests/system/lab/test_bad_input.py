"""Whatever is wrong with a command line, a file or this machine: one sentence, the right status, nothing half done."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from podidentity_lab import control, directory, down
from system.lab.running import Lab, Namespaces, lab, processes_of
from waiting import until

AZURE_JSON = {
    "tenantId": "t",
    "subscriptionId": "s",
    "resourceGroup": "g",
    "aadClientId": "c",
    "aadClientSecret": "a secret",
}
KUBECONFIG = """
apiVersion: v1
kind: Config
clusters: [{name: a, cluster: {server: "https://127.0.0.1:1"}}]
contexts: [{name: a, context: {cluster: a, user: a}}]
users: [{name: a, user: {token: a secret}}]
current-context: a
"""


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Files that are right, wrong, unreadable and no files at all."""
    (tmp_path / "labs").mkdir(mode=0o700)
    (tmp_path / "azure.json").write_text(json.dumps(AZURE_JSON))
    (tmp_path / "half.json").write_text(json.dumps(AZURE_JSON)[:40])
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "empty.json").write_text(json.dumps({**AZURE_JSON, "subscriptionId": ""}))
    (tmp_path / "kubeconfig").write_text(KUBECONFIG)
    (tmp_path / "half.yaml").write_text("clusters: [")
    (tmp_path / "odd.yaml").write_text("apiVersion: v1\nclusters: 5\n")
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    (tmp_path / "folder").mkdir()
    return tmp_path


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody listens on."""
    with socket.create_server(("", 0)) as listener:
        yield listener.getsockname()[1]


def podidentity(files: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command with nothing but `variables` around it; `{files}` in a word is the directory of files."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(files),
        "PODIDENTITY_LAB_HOME": str(files / "labs"),
        "MIC_POD_NAMESPACE": "default",
        **variables,
    }
    command = [sys.executable, "-m", "podidentity", *(word.format(files=files) for word in words)]
    return subprocess.run(command, cwd=files, env=environment, capture_output=True, text=True, check=False, timeout=60)


def assert_one_sentence(told: subprocess.CompletedProcess[str], status: int, *said: str) -> None:
    """The last line of standard error is the sentence; before it there may be log lines, never a traceback."""
    assert told.returncode == status, told.stderr
    assert "Traceback" not in told.stderr
    assert "a secret" not in told.stderr
    lines = told.stderr.splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    for part in said:
        assert part in lines[-1]


USAGE: list[tuple[str, str]] = [
    ("--nope", "--nope"),
    ("nope", "'nope'"),
    ("lab nope", "'nope'"),
    ("lab up --nope", "--nope"),
    ("lab up one", "(one)"),
    ("lab up --nodes", "'--nodes' requires an argument"),
    ("lab up --nodes many", "'many' is not a valid integer"),
    ("lab up --nodes 0", "a lab has 1 to 100 nodes"),
    ("lab up --name ../x", "--name '../x': it is no name of a lab; use at most 32 lower-case letters"),
    ("lab up --name x- --detach", "--name 'x-': it is no name of a lab; use at most 32 lower-case letters"),
    ("lab up --nodes 2 --virtual-machines 3", "--virtual-machines 3: there are 2 nodes; use no more than that"),
    ("lab up --off-azure --virtual-machines 1", "1 nodes cannot be VMs of Azure then"),
    ("lab up --network tube", "'tube' is not one of 'routed', 'bridge'"),
    ("lab demo now", "(now)"),
    ("nmi --nope", "unknown flag --nope"),
    ("nmi extra", "extra"),
    ("nmi --nmi-port=0", "--nmi-port: 0 is not a port"),
    ("nmi --nmi-port=many", "many"),
    ("nmi --operation-mode=other", "give standard or managed"),
    ("nmi --operation-mode=managed", "add --forceNamespaced"),
    ("nmi --log-format=xml", "give text or json"),
    ("mic --nope", "unknown flag --nope"),
    ("mic --syncRetryDuration=5", '"5" is not a duration'),
    ("mic --http-probe-port=99999", "--http-probe-port: 99999 is not a port"),
    ("mic --log-format=xml", "give text or json"),
    ("mic --cloudconfig={files}/nope.json", "nope.json: No such file or directory; name azure.json with --cloudconfig"),
    ("mic --cloudconfig={files}/folder", "folder: Is a directory"),
    ("mic --cloudconfig={files}/binary", "binary: not UTF-8 text"),
    ("mic --cloudconfig={files}/half.json", "half.json: not JSON"),
    ("mic --cloudconfig={files}/list.json", "list.json: holds no fields"),
    ("mic --cloudconfig={files}/empty.json", 'empty.json: "subscriptionId" is empty'),
    ("mic --cloudconfig={files}/azure.json", "set KUBECONFIG to the path of a kubeconfig"),
    ("mic --cloudconfig={files}/azure.json --kubeconfig={files}/nope", "kubeconfig"),
    ("mic --cloudconfig={files}/azure.json --kubeconfig={files}/folder", "folder"),
    ("mic --cloudconfig={files}/azure.json --kubeconfig={files}/binary", "binary"),
    ("mic --cloudconfig={files}/azure.json --kubeconfig={files}/half.yaml", "half.yaml: not YAML"),
    ("mic --cloudconfig={files}/azure.json --kubeconfig={files}/odd.yaml", "odd.yaml"),
]


@pytest.mark.parametrize(("words", "said"), USAGE, ids=[words.replace("{files}/", "") for words, _ in USAGE])
def test_a_wrong_word_or_file_is_named(files: Path, words: str, said: str) -> None:
    """Exit status 2: whoever called must change something; and no lab has begun."""
    assert_one_sentence(podidentity(files, *words.split()), 2, said)
    assert not [path for path in (files / "labs").iterdir() if path.name != ".lock"]


LAB: list[tuple[str, dict[str, str], str]] = [
    ("lab up --name x --detach --logs {files}/binary/x", {}, "--logs"),
    ("lab up --logs /proc/nowhere", {}, "--logs /proc/nowhere"),
    ("lab status --name nope", {}, "lab 'nope': no lab is up"),
    ("lab env --name nope", {}, "start it with `podidentity lab up --name nope`"),
    ("lab list", {"PODIDENTITY_LAB_HOME": "{files}/binary"}, "cannot be made"),
    ("lab up", {"PODIDENTITY_LAB_HOME": "/proc/nowhere"}, "set PODIDENTITY_LAB_HOME to another one"),
    ("lab up", {"PODIDENTITY_LAB_HOME": "/usr"}, "is not a directory of yours alone"),
]


@pytest.mark.parametrize(("words", "variables", "said"), LAB, ids=[f"{words} {extra}" for words, extra, _ in LAB])
def test_a_lab_that_cannot_be_is_explained(files: Path, words: str, variables: Mapping[str, str], said: str) -> None:
    """Exit status 1, and nothing is left behind."""
    made = {name: value.format(files=files) for name, value in variables.items()}
    assert_one_sentence(podidentity(files, *words.split(), **made), 1, said)
    assert not [path for path in (files / "labs").iterdir() if path.name != ".lock"]


def test_to_end_no_lab_is_to_have_none(files: Path) -> None:
    """A script that cleans up need not know whether a lab came up: exit status 0, and a word about it."""
    done = podidentity(files, "lab", "down")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "no lab is up\n")


@pytest.mark.parametrize("images", ["app", "app=", "={files}", "app={files}/binary"])
def test_an_image_without_a_directory_is_named(files: Path, images: str) -> None:
    """An image without a directory is refused before the lab starts, with a sentence that says how to write it."""
    told = podidentity(files, "lab", "up", PODIDENTITY_LAB_IMAGES=images.format(files=files))
    assert_one_sentence(told, 2, "PODIDENTITY_LAB_IMAGES: app=" if "app" in images else "=/", "write NAME=DIRECTORY")


@pytest.mark.parametrize("daemon", ["nmi --redirect=none --nmi-listen-address=127.0.0.1", "mic"])
def test_a_taken_port_is_named(files: Path, taken: int, daemon: str) -> None:
    """Exit status 3: something about this machine must change."""
    words = [*daemon.split(), f"--http-probe-port={taken}", f"--prometheus-port={taken}"]
    words += [f"--cloudconfig={files}/azure.json"] if daemon == "mic" else []
    told = podidentity(files, *words, KUBECONFIG=str(files / "kubeconfig"))
    assert_one_sentence(told, 3, f"port {taken}", "in use")


def test_without_a_program_the_lab_names_its_package(files: Path) -> None:
    """Exit status 3, and which Debian package brings it."""
    (files / "few").mkdir()
    hide = f"mount --bind {files}/few /usr/sbin && mount --bind {files}/few /sbin"
    script = f"{hide}; exec '{sys.executable}' -m podidentity lab up"
    environment = {"PATH": os.environ["PATH"], "PODIDENTITY_LAB_HOME": str(files / "labs")}
    told = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert_one_sentence(told, 3, "nft", "apt-get install", "nftables")


@pytest.mark.parametrize("words", ["--help", "lab --help", "nmi --help", "mic --help"])
def test_output_that_does_not_arrive_is_told(words: str) -> None:
    """A full disk is no success and no traceback; a reader that has had enough is neither an error nor a success."""
    command = [sys.executable, "-m", "podidentity", *words.split()]
    with Path("/dev/full").open("w") as full:
        told = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    assert_one_sentence(told, 1, "No space left on device")
    reading, writing = os.pipe()
    os.close(reading)
    told = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    os.close(writing)
    assert (told.returncode, told.stderr) == (1, "")


@pytest.mark.parametrize("streams", [">&-", "2>&- >&-", "<&- >&-", "<&- >&- 2>&-"])
def test_a_stream_that_is_closed_takes_nothing(files: Path, streams: str) -> None:
    """Closed on purpose, as some cron jobs do: no traceback, and no file takes the stream's place."""
    command = f"'{sys.executable}' -m podidentity lab list {streams}"
    told = subprocess.run(
        ["sh", "-c", command],
        env={"PATH": os.environ["PATH"], "PODIDENTITY_LAB_HOME": str(files / "labs")},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (told.returncode, told.stdout) == (0, "")
    assert told.stderr == ("" if "2>&-" in streams else "no lab is up\n")
    assert (files / "labs/.lock").read_text().startswith("podidentity's labs")


@pytest.mark.parametrize("words", ["up --logs logs", "up --seed seed.yaml", "up --state lab.json"])
def test_a_directory_that_is_gone_is_told(files: Path, words: str) -> None:
    """Somebody removed the directory that the shell is in: one sentence, and no lab has begun."""
    command = f"mkdir gone && cd gone && rmdir ../gone && exec '{sys.executable}' -P -m podidentity lab {words}"
    told = subprocess.run(
        ["sh", "-c", command],
        cwd=files,
        env={"PATH": os.environ["PATH"], "PODIDENTITY_LAB_HOME": str(files / "labs")},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert_one_sentence(told, 1, "the current directory is gone; change to one that exists")
    assert not [path for path in (files / "labs").iterdir() if path.name != ".lock"]


@pytest.mark.root
def test_a_disk_that_fills_up_under_a_lab_is_told(files: Path) -> None:
    """Enough room to begin and too little to go on: one sentence, and the directory is removed."""
    place = files / "small"
    place.mkdir()
    command = f"'{sys.executable}' -m podidentity lab up --name one"
    script = f"mount -t tmpfs -o size=16k,mode=700 small {place} && {command}; status=$?; ls -A {place}; exit $status"
    told = subprocess.run(
        ["unshare", "--mount", "--map-root-user", "--user", "sh", "-c", script],
        env={"PATH": os.environ["PATH"], "PODIDENTITY_LAB_HOME": str(place)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert_one_sentence(told, 1, "No space left on device")
    assert told.stdout.split() == [".lock"]


@pytest.mark.root
def test_what_a_lab_cannot_do_leaves_it_as_it_is(files: Path) -> None:
    """A second lab of its name is refused, detached or not, and so are files that are none; the lab lives on."""
    one = ("--name", "one")
    with lab(files / "labs", "one", "--nodes", "1") as up:
        assert_one_sentence(up.run("down", "--name", "other"), 1, "lab 'other': up are one; say which one with --name")
        assert_one_sentence(
            up.run("fault", "set", *one, "imds_seconds=Infinity"), 2, "imds_seconds must be a number", "lab fault show"
        )
        os.mkfifo(files / "pipe")
        for name in ("pipe", "folder"):
            told = up.run("save", *one, str(files / name))
            assert_one_sentence(told, 1, f"{name}: it is no plain file; name a file that can be written")
        assert (files / "pipe").is_fifo()
        assert_one_sentence(
            up.run("load", *one, str(files / "binary")), 1, "binary: it cannot be read as a tar archive"
        )
        assert_one_sentence(
            up.run("load", *one, str(files / "folder")), 1, "folder: neither manifest.json nor index.json"
        )
        for more in ([], ["--detach"]):
            told = up.run("up", "--name", "one", *more)
            assert_one_sentence(told, 1, "lab 'one': it is up already")
        assert up.get("nodes")["items"]


@pytest.mark.root
def test_a_lab_that_does_not_answer_is_told(files: Path) -> None:
    """Its control socket is gone, or it hangs: one sentence names the lab; `down` still ends it."""
    with Lab(files / "labs", "one").started("--nodes", "1") as process:
        one = Lab(files / "labs", "one")
        until(lambda: process.poll() is not None or (one.directory / "lab.json").exists(), "the lab is up")
        assert process.poll() is None
        (one.directory / "control.sock").unlink()
        assert_one_sentence(one.run("status", "--name", "one"), 1, "lab 'one' does not answer")
        assert one.run("down", "--name", "one").returncode == 0
        assert process.wait(30) == 0
    assert not processes_of(files / "labs")


@pytest.mark.root
def test_a_lab_that_hangs_can_be_ended(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outer and inner process are stopped: `down` has patience, then the kernel ends both."""
    monkeypatch.setattr(down, "STOP_SECONDS", 1.0)
    monkeypatch.setattr(control, "ANSWER_SECONDS", 1.0)
    monkeypatch.setenv("PODIDENTITY_LAB_HOME", str(files / "labs"))
    one = Lab(files / "labs", "one")
    with one.started("--nodes", "1") as process:
        until(lambda: process.poll() is not None or (one.directory / "lab.json").exists(), "the lab is up")
        assert process.poll() is None
        process.send_signal(signal.SIGSTOP)
        with Namespaces() as made:
            for pid in made.add_below(process.pid).members():
                with contextlib.suppress(ProcessLookupError):  # some live for milliseconds
                    os.kill(int(pid), signal.SIGSTOP)
        down.stop(directory.find("one"))
    assert not one.directory.exists()
    assert not processes_of(files / "labs")
