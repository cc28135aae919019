"""The charts and the manifests of a release, with the names under which its images are published."""

import contextlib
import io
import re
import shutil
import tempfile
from pathlib import Path

import helm_python
import manifests
from deployment.settings import Images

from artifacts import archives
from artifacts.checkout import Checkout

CHARTS = tuple(Path("charts", name) for name in ("aad-pod-identity", "podidentity-broker", "podidentity-webhook"))
_REPOSITORY = re.compile(r"^  repository: podidentity\b", re.MULTILINE)


def package(checkout: Checkout, chart: Path, registry: str, target: Path) -> Path:
    """Package a chart, as `helm push` takes it, with `registry` as the default of its images.

    Helm packages; its archive has the time of the day, and is therefore packed again.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, chart.name)
        shutil.copytree(checkout.root / chart, copy)
        values = copy / "values.yaml"
        text, count = _REPOSITORY.subn(f"  repository: {registry}", values.read_text())
        if count != 1:
            raise SystemExit(
                f"{values.name}: {count} lines begin with `  repository: podidentity`; the release fills in exactly one"
            )
        values.write_text(text)
        archive = Path(helm_python.package(copy, destination=folder))
        return archives.write(archives.read(archive), target / archive.name, checkout.epoch)


def deploy(checkout: Checkout, registry: str, target: Path) -> Path:
    """Archive deploy/, generated anew with the images of `registry`; its root is `podidentity-VERSION`."""
    images = Images().published(registry)
    names = {name: value for name, value in images.by_name().items() if value != Images().by_name()[name]}
    options = [f"--{name}-image={value}" for name, value in names.items()]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        manifests.main([*options, f"--root={folder}"])
        root = Path(folder)
        files = {
            f"podidentity-{checkout.version}/{path.relative_to(root)}": path.read_bytes()
            for path in (root / "deploy").rglob("*.yaml")
        }
    return archives.write(files, target / f"podidentity-{checkout.version}-manifests.tar.gz", checkout.epoch)
