"""A release, built twice from fresh clones at a tag: what it contains, and that its bytes are the same."""

import hashlib
import importlib.util
import json
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import helm_python
import pytest
import yaml

pytestmark = [pytest.mark.root, pytest.mark.timeout(900)]
REPOSITORY = Path(__file__).parents[3]
VERSION = "2.0.0rc1"
REGISTRY = "registry.example.org/identity"
IMAGE = REPOSITORY / "build/image.tar"
TENANT = "11111111-1111-1111-1111-111111111111"
REQUIRED_VALUES = {"podidentity-broker": {"tenantId": TENANT}, "podidentity-webhook": {"azureTenantID": TENANT}}
"""Values without which a chart refuses to be installed."""

if not importlib.util.find_spec("hatchling") or not importlib.util.find_spec("cyclonedx"):  # `make test` installs both
    pytest.skip("hatchling and cyclonedx-bom are not installed; run make test", allow_module_level=True)


def clone(folder: Path, origin: Path = REPOSITORY) -> Path:
    """Clone the commit that is tested, with its version's tag."""
    subprocess.run(["git", "clone", "--quiet", "--local", "--no-tags", origin, folder], check=True)
    subprocess.run(["git", "-C", folder, "tag", f"v{VERSION}"], check=True)
    return folder


def release(checkout: Path, *options: str | Path) -> subprocess.CompletedProcess[str]:
    """Run tools/release.py of a clone."""
    command = [sys.executable, checkout / "tools/release.py", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two releases of the same commit, from clones in different places; the first is signed with key `signer`."""
    subprocess.run([sys.executable, REPOSITORY / "tools/image.py", "--product"], check=True)  # only what has changed
    base = tmp_path_factory.mktemp("release")
    key = base / "signer"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    made: list[Path] = []
    options: list[tuple[str, list[str | Path]]] = [("one", ["--sign-key", key]), ("another/place", [])]
    for name, more in options:
        # Both of one commit, whatever is committed meanwhile.
        checkout = clone(base / name, made[0].parent if made else REPOSITORY)
        done = release(checkout, "--image", IMAGE, "--registry", REGISTRY, *more)
        assert done.returncode == 0, done.stdout + done.stderr
        made.append(checkout / "dist")
    return made


def test_it_has_everything_to_publish(folders: list[Path]) -> None:
    """The directory has exactly the files to publish."""
    names = {path.name for path in folders[1].iterdir()}
    archive = next(name for name in names if name.startswith("images-") and name.endswith(".tar"))
    charts = [yaml.safe_load(path.read_text()) for path in REPOSITORY.glob("charts/*/Chart.yaml")]
    assert names == {
        *(
            f"{name}-{VERSION}{suffix}"
            for name in ("podidentity", "podidentity_lab")
            for suffix in ("-py3-none-any.whl", ".tar.gz", ".cdx.json")
        ),
        archive,
        archive.replace(".tar", ".cdx.json"),
        *(f"{chart['name']}-{chart['version']}.tgz" for chart in charts),
        f"podidentity-{VERSION}-manifests.tar.gz",
        *("IMAGES", "NOTES.md", "SHA256SUMS"),
    }


def test_the_same_commit_makes_the_same_bytes(folders: list[Path]) -> None:
    """Two builds of a commit have the same sums, and the sums are those of the files."""
    one, other = ((folder / "SHA256SUMS").read_text() for folder in folders)
    assert one == other
    for line in one.splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((folders[0] / name).read_bytes()).hexdigest() == digest
    assert len(one.splitlines()) == len(list(folders[1].iterdir())) - 1


def test_the_sums_are_signed(folders: list[Path], tmp_path: Path) -> None:
    """`ssh-keygen -Y verify` accepts the signature for these sums, and for no others."""
    dist = folders[0]
    public = (dist.parents[1] / "signer.pub").read_text()
    allowed = tmp_path / "allowed"
    allowed.write_text(f"release {public}")
    command: list[str | Path] = [
        "ssh-keygen",
        "-Y",
        "verify",
        "-f",
        allowed,
        "-I",
        "release",
        "-n",
        "podidentity-release",
    ]
    command += ["-s", dist / "SHA256SUMS.sig"]
    sums = (dist / "SHA256SUMS").read_bytes()
    assert subprocess.run(command, input=sums, capture_output=True, check=False).returncode == 0
    assert subprocess.run(command, input=sums + b"\n", capture_output=True, check=False).returncode != 0


@pytest.mark.parametrize("name", ["podidentity", "podidentity_lab"])
def test_a_source_archive_makes_the_same_wheel(folders: list[Path], tmp_path: Path, name: str) -> None:
    """A wheel built from the source archive has the files of the published wheel."""
    with tarfile.open(folders[0] / f"{name}-{VERSION}.tar.gz") as tar:
        tar.extractall(tmp_path, filter="data")
    source = next(tmp_path.iterdir())
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel"], cwd=source, check=True, capture_output=True
    )
    wheels = [next((source / "dist").glob("*.whl")), folders[0] / f"{name}-{VERSION}-py3-none-any.whl"]
    built, published = (
        {entry: archive.read(entry) for entry in archive.namelist()} for archive in map(zipfile.ZipFile, wheels)
    )
    assert built == published


def test_chart_and_manifests_name_the_published_images(folders: list[Path]) -> None:
    """Charts and manifests install images that the release publishes."""
    dist = folders[0]
    images = set((dist / "IMAGES").read_text().split())
    assert images
    assert all(image.startswith(f"{REGISTRY}/") for image in images)
    texts = []
    for package in dist.glob("*.tgz"):
        with helm_python.Chart.load(package) as chart:
            values = REQUIRED_VALUES.get(chart.name, {})
            texts.append("".join(chart.render(values, name="release", namespace="identity").values()))
    with tarfile.open(next(dist.glob("*manifests.tar.gz"))) as tar:
        for name in ("podidentity/standard.yaml", "broker/broker.yaml", "webhook/webhook.yaml"):
            manifest = tar.extractfile(f"podidentity-{VERSION}/deploy/{name}")
            assert manifest is not None
            texts.append(manifest.read().decode())
    for text in texts:
        assert {line.split("image:")[1].strip().strip('"') for line in text.splitlines() if " image:" in line} <= images
        assert REGISTRY in text


def test_the_image_archive_has_its_published_names(folders: list[Path]) -> None:
    """The archive has the members of build/image.tar, and the published names as tags."""
    with tarfile.open(IMAGE) as old, tarfile.open(next(folders[0].glob("images-*.tar"))) as new:
        assert old.getnames() == new.getnames()
        content = new.extractfile("manifest.json")
        assert content is not None
        tags = [tag for image in json.load(content) for tag in image["RepoTags"]]
    assert tags == (folders[0] / "IMAGES").read_text().split()


def test_bills_name_what_is_installed(folders: list[Path]) -> None:
    """The images' bill names Debian's and Python's packages; a distribution's bill names its dependencies as pinned."""

    def components(pattern: str) -> dict[str, str]:
        bill = json.loads(next(folders[0].glob(pattern)).read_text())
        assert bill["bomFormat"] == "CycloneDX"
        return {entry["name"]: entry["purl"] for entry in bill["components"]}

    of_images = components("images-*.cdx.json")
    assert of_images["nftables"].startswith("pkg:deb/debian/nftables@")
    assert of_images["httptools"].startswith("pkg:pypi/httptools@")
    pinned = (REPOSITORY / "constraints.txt").read_text()
    product, lab = components("podidentity-*.cdx.json"), components("podidentity_lab-*.cdx.json")
    assert f"httptools=={product['httptools'].partition('@')[2]}\n" in pinned
    assert "starlette" in lab
    assert "starlette" not in product


def test_notes_are_the_versions_part_of_the_changelog(folders: list[Path]) -> None:
    """The notes are the part of CHANGELOG.md for the version."""
    notes = (folders[0] / "NOTES.md").read_text()
    assert notes.startswith(f"# podidentity {VERSION}\n")
    assert notes.split("\n\n", 1)[1].strip() in (folders[0].parent / "CHANGELOG.md").read_text()


def test_a_tree_that_is_no_release_is_refused(tmp_path: Path) -> None:
    """A checkout with changes, and a commit without the version's tag, are refused with a sentence each."""
    checkout = clone(tmp_path / "clone")
    (checkout / "README.md").write_text("changed")
    assert "it has changes (M README.md); commit them" in release(checkout).stderr
    subprocess.run(["git", "-C", checkout, "checkout", "--quiet", "README.md"], check=True)
    subprocess.run(["git", "-C", checkout, "tag", "--delete", f"v{VERSION}"], check=True, capture_output=True)
    assert f"its commit has no tag v{VERSION}" in release(checkout).stderr
