"""Makes the images: `build/image.tar` for clusters and `build/lab-images.tar` for the lab.

    image.py              both archives; only layers whose source files changed are made again
    image.py --product    build/image.tar alone

The archives are what `ctr images import` and `docker load` take. The Dockerfile puts the same files into the same
places (`image_root.py`).
"""

import argparse
import fcntl
import hashlib
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from deployment.settings import Images
from imaging import lab, python, roots
from imaging.roots import Make

from podidentity_lab.real import archive
from podidentity_lab.real.archive import Image

REPOSITORY = Path(__file__).parent.parent
BUILD = REPOSITORY / "build"
CACHE = BUILD / "image"
SYSTEM = CACHE / "system"
BUDGET_MB = 135
USER = "65532:65532"
"""As whom the broker and the webhook run: nobody that the image knows. NMI and MIC are root where their pods say so."""
ENVIRONMENT: Mapping[str, str] = {"PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--product", action="store_true", help="write build/image.tar alone")
    options = parser.parse_args()
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / ".lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # both lanes of `make test` make images
        layers = [_layer(part.name, part.make, part.sources) for part in roots.parts(REPOSITORY, SYSTEM)]
        _write_product(layers)
        if not options.product:
            _write_lab(layers)


def _write_product(layers: Sequence[Path]) -> None:
    names = Images()
    labels = {
        "org.opencontainers.image.title": "podidentity",
        "org.opencontainers.image.version": python.project(REPOSITORY)["project"]["version"],
        "org.opencontainers.image.licenses": "MIT",
    }
    programs = (
        (names.nmi, ("podidentity", "supervise", "nmi"), ""),  # keeps NMI's sockets open while it starts after a crash
        (names.mic, ("mic",), ""),
        (names.broker, ("broker",), USER),
        (names.webhook, ("webhook",), USER),
    )
    # Not the first process of its container: from that one the kernel keeps SIGTERM until Python has come so far as to
    # handle it. A MIC told to stop while it starts would go on, be elected, and be killed 30 s later with the lock.
    archive.write(
        [Image([name], layers, ["tini", "--", *words], ENVIRONMENT, labels, user) for name, words, user in programs],
        BUILD / "image.tar",
    )
    size = sum(layer.stat().st_size for layer in layers) / 1e6
    print(f"build/image.tar: {', '.join(names.local())}, {size:.0f} MB unpacked")
    if size > BUDGET_MB:
        raise SystemExit(f"build/image.tar: it has {size:.0f} MB, more than {BUDGET_MB} MB; leave something out")


def _write_lab(layers: Sequence[Path]) -> None:
    tools, project = REPOSITORY / "tools/imaging", REPOSITORY / "pyproject.toml"
    sources = [project, REPOSITORY / "constraints.txt", tools / "lab.py", tools / "python.py", tools / "debian.py"]
    sources += sorted((REPOSITORY / "examples/keyvault-app/keyvault_app").glob("*.py"))
    application = _layer("application", lambda root: lab.application(REPOSITORY, SYSTEM, root), sources)
    shell = _layer("tools", lab.tools, [tools / "lab.py", tools / "debian.py", lab.BUSYBOX])
    environment = {**ENVIRONMENT, "PYTHONPATH": f"/{lab.APPLICATION}"}
    images = [
        Image(
            ["jcorioland/keyvault-aad-pod-identity:1.1"],
            [*layers, application],
            ["python3", "-m", "keyvault_app"],
            environment,
        ),
        Image(["podidentity/lab-tools:1"], [*layers, application, shell], [], environment),
    ]
    archive.write(images, BUILD / "lab-images.tar")
    print("build/lab-images.tar: the sample application, and the lab's tools")


def _layer(name: str, make: Make, sources: Iterable[Path]) -> Path:
    """Return the file of the layer `name`; it is made again only when the contents of `sources` changed."""
    digest = hashlib.sha256()
    for path in sources:
        digest.update(f"{path.relative_to(REPOSITORY)}\0".encode() + path.read_bytes())
    target = CACHE / f"{name}-{digest.hexdigest()[:16]}.layer"
    root = CACHE / name
    if target.exists() and root.exists():
        return target
    print(f"making the layer {name}")
    for old in CACHE.glob(f"{name}-*.layer"):
        old.unlink()
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    make(root)
    archive.layer(((path, str(path.relative_to(root))) for path in root.rglob("*")), target)
    return target


if __name__ == "__main__":
    main()
