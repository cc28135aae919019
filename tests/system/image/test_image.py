"""The images, built twice: by `tools/image.py` as an archive, and from the Dockerfile with Debian's buildah."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from system.image.building import Buildah
from system.lab.running import missing
from waiting import until

REPOSITORY = Path(__file__).parents[3]
SOURCES = ("src", "deploy", "tools", "examples", "pyproject.toml", "constraints.txt", "README.md", "LICENSE")
PROGRAMS = {
    *("usr/bin/ip", "usr/bin/python3", "usr/bin/python3.11", "usr/bin/sleep", "usr/bin/tini"),
    *("usr/sbin/conntrack", "usr/sbin/nft"),
    *(f"usr/local/bin/{name}" for name in ("broker", "mic", "nmi", "podidentity", "webhook")),
}
"""Every program of the images. No shell, no package manager; of iproute2 NMI uses `ip` alone."""

DOCUMENTS = Path("usr/share/doc")


@dataclass(frozen=True, slots=True)
class Entry:
    """What an image has at a path, except for the time."""

    kind: bytes
    mode: int
    owner: tuple[int, int]
    target: str
    content: bytes


@pytest.fixture(scope="module")
def archive() -> Path:
    """The archive of this checkout; parts that are not up to date are made first."""
    make(REPOSITORY)
    return REPOSITORY / "build/image.tar"


def make(checkout: Path) -> None:
    """Run what `make image` runs."""
    command = [sys.executable, str(checkout / "tools/image.py"), "--product"]
    subprocess.run(command, cwd=checkout, check=True, capture_output=True)


def entries(archive: Path) -> dict[str, Entry]:
    """Return all paths of the first image of an archive, upper layers over lower ones."""
    found: dict[str, Entry] = {}
    with tarfile.open(archive) as whole:
        manifest = json.load(whole.extractfile("manifest.json") or pytest.fail("no manifest"))
        for layer in manifest[0]["Layers"]:
            with tarfile.open(fileobj=whole.extractfile(layer)) as tar:
                for info in tar:
                    stream = tar.extractfile(info) if info.isreg() else None
                    content = stream.read() if stream else b""
                    mode = 0o777 if info.issym() else info.mode & 0o7777  # a link's own says nothing
                    found[info.name] = Entry(info.type, mode, (info.uid, info.gid), info.linkname, content)
    return found


@pytest.mark.timeout(600)
def test_two_checkouts_make_the_same_bytes(archive: Path, tmp_path: Path) -> None:
    """An archive built in another directory is the same, byte for byte."""
    other = tmp_path / "elsewhere"
    other.mkdir()
    for name in SOURCES:
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, other / name, ignore=shutil.ignore_patterns("__pycache__", "node_modules"))
        else:
            shutil.copy(source, other / name)
    make(other)
    assert (other / "build/image.tar").read_bytes() == archive.read_bytes()


@pytest.mark.timeout(600)
def test_the_archive_holds_the_product_alone(archive: Path) -> None:
    """Only listed programs, no setuid or setgid file, nothing of the lab, and each listed package with its licence."""
    paths = entries(archive)
    programs = {
        path for path in paths if path.startswith(("usr/bin/", "usr/sbin/", "usr/local/bin/", "usr/local/sbin/"))
    }
    assert programs == PROGRAMS
    assert not [path for path, entry in paths.items() if entry.mode & 0o6000]
    assert not [path for path, entry in paths.items() if entry.owner != (0, 0)]
    assert not [path for path in paths if "podidentity/lab" in path or "podidentity_lab" in path or "/cli/lab" in path]
    packages = {path.rsplit("/", 1)[1] for path in paths if path.startswith("var/lib/dpkg/status.d/")}
    assert {"libc6", "libssl3", "nftables", "libpython3.11-stdlib"} <= packages
    assert not packages & {"dpkg", "tar", "perl-base", "debconf", "mawk", "bash", "dash"}
    licences = {path.split("/")[3] for path in paths if path.endswith("/copyright")}
    links = {Path(path).name: entry.target for path, entry in paths.items() if Path(path).parent == DOCUMENTS}
    shared = {name: target for name, target in links.items() if target}
    assert licences | {name for name, target in shared.items() if target in licences} == packages | {*shared.values()}


@pytest.mark.timeout(900)
@pytest.mark.root
def test_the_dockerfile_makes_the_same_files_and_they_run(archive: Path, buildah: Buildah, tmp_path: Path) -> None:
    """An image built with Debian's own Python has the archive's files, and its programs start."""
    saved = tmp_path / "nmi.tar"
    image = buildah.image("nmi")
    buildah.run("push", image, f"docker-archive:{saved}")
    built, expected = (
        {path.strip("/"): entry for path, entry in entries(one).items() if path.strip("/")} for one in (saved, archive)
    )
    assert built.keys() ^ expected.keys() == set()
    assert [path for path in built if built[path] != expected[path]] == []
    container = buildah.run("from", "--pull-never", image)

    def run(*words: str) -> str:
        return buildah.run("run", "--isolation=chroot", container, "--", *words)

    assert run("podidentity", "--version").startswith("podidentity, version ")
    assert "podidentity nmi [flags]" in run("nmi", "--help")
    assert "podidentity mic [flags]" in run("mic", "--help")
    assert "podidentity broker [flags]" in run("broker", "--help")
    assert "podidentity webhook [flags]" in run("webhook", "--help")
    assert run("nft", "--version").startswith("nftables v")
    assert run("conntrack", "--version").startswith("conntrack v")
    assert run("ip", "-V").startswith("ip utility")
    run(
        "python3",
        "-c",
        "import podidentity.cli.nmi, podidentity.cli.mic, podidentity.cli.doctor, podidentity.cli.explain,"
        "podidentity.https.server, aiohttp.web, yaml; yaml.safe_load('a: 1')",
    )


@pytest.mark.parametrize("name", ["broker", "webhook"])
def test_broker_and_webhook_are_nobody(archive: Path, name: str) -> None:
    """The image itself names a user that is not root, for pods that name none."""
    with tarfile.open(archive) as whole:
        manifest = json.load(whole.extractfile("manifest.json") or pytest.fail("no manifest"))
        (image,) = [image for image in manifest if image["RepoTags"][0].startswith(f"podidentity/{name}:")]
        config = json.load(whole.extractfile(image["Config"]) or pytest.fail("no configuration"))["config"]
    assert (config["User"], config["Entrypoint"]) == ("65532:65532", ["tini", "--", name])


@pytest.mark.root
def test_a_daemon_that_is_told_to_stop_before_python_runs_ends(archive: Path, tmp_path: Path) -> None:
    """SIGTERM ends the container even before Python has a handler for it.

    A first process without a handler ignores the signal; it would be killed 30 s later.
    """
    if os.geteuid() != 0:
        missing("another root needs root")
    extract(archive, tmp_path)
    with tarfile.open(archive) as whole:
        manifest = json.load(whole.extractfile("manifest.json") or pytest.fail("no manifest"))
        config = json.load(whole.extractfile(manifest[1]["Config"]) or pytest.fail("no configuration"))["config"]
    assert config["Entrypoint"][-1] == "mic"
    command = ["unshare", "--pid", "--net", "--fork", f"--root={tmp_path}", *config["Entrypoint"]]
    variables = dict(one.split("=", 1) for one in config["Env"]) | {"MIC_POD_NAMESPACE": "default"}
    outer = subprocess.Popen(command, env={**variables, "PATH": f"{variables['PATH']}:{os.environ['PATH']}"})
    first = only_child(outer.pid)
    only_child(first)  # Python, which has just started
    os.kill(first, signal.SIGTERM)
    assert outer.wait(5) in {128 + signal.SIGTERM, -signal.SIGTERM}


def only_child(pid: int) -> int:
    """Wait for a process to have a child."""
    file = Path(f"/proc/{pid}/task/{pid}/children")
    until(lambda: file.read_text().split(), f"{pid} has a child", 10)
    return int(file.read_text().split()[0])


def extract(archive: Path, root: Path) -> None:
    """Unpack an image below `root`."""
    with tarfile.open(archive) as whole:
        manifest = json.load(whole.extractfile("manifest.json") or pytest.fail("no manifest"))
        for layer in manifest[0]["Layers"]:
            with tarfile.open(fileobj=whole.extractfile(layer)) as tar:
                tar.extractall(root, filter="fully_trusted")  # noqa: S202  # what this checkout made
