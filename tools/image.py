"""Makes the images: `build/image.tar` for clusters, `build/lab-images.tar` for the lab, or a root for the Dockerfile.

    image.py              both archives; only the layers whose ingredients changed are made again
    image.py --root DIR   podidentity's root file system in DIR, which the Dockerfile copies

The archives are what `ctr images import` and `docker load` take. Both ways put the same files into the same places.
"""

import argparse
import hashlib
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from deployment.settings import Images
from imaging import debian, lab, python

from podidentity.lab.real import archive
from podidentity.lab.real.archive import Image

REPOSITORY = Path(__file__).parent.parent
BUILD = REPOSITORY / "build"
CACHE = BUILD / "image"
BUDGET_MB = 150

Make = Callable[[Path], None]


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--root", type=Path, metavar="DIR", help="write the root file system here, and no archive")
    asked = parser.parse_args()
    CACHE.mkdir(parents=True, exist_ok=True)
    version = debian.python_version()
    if asked.root:
        for _, make, _ in _parts(version):
            make(asked.root)
        print(f"{asked.root}: {_megabytes(asked.root):.0f} MB")
    else:
        _write_archives(version)


def _write_archives(version: str) -> None:
    layers = [_layer(name, make, ingredients) for name, make, ingredients in _parts(version)]
    names, environment = Images(), {"PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    labels = {
        "org.opencontainers.image.title": "podidentity",
        "org.opencontainers.image.version": python.project(REPOSITORY)["project"]["version"],
        "org.opencontainers.image.licenses": "MIT",
    }
    own = [
        Image([name], layers, [program], environment, labels)
        for name, program in ((names.nmi, "nmi"), (names.mic, "mic"))
    ]
    archive.write(own, BUILD / "image.tar")
    application = _layer("application", lambda root: lab.application(REPOSITORY, version, root), _application_sources())
    tools = _layer("tools", lambda root: lab.tools(CACHE, root), [REPOSITORY / "tools/imaging/lab.py"])
    path = {"PYTHONPATH": f"/{lab.APPLICATION}"}
    for_lab = [
        Image(
            ["jcorioland/keyvault-aad-pod-identity:1.1"],
            [*layers, application],
            ["python3", "-m", "keyvault_app"],
            environment | path,
        ),
        Image(["podidentity/lab-tools:1"], [*layers, application, tools], [], environment | path),
    ]
    archive.write(for_lab, BUILD / "lab-images.tar")
    size = sum(layer.stat().st_size for layer in layers) / 1e6
    print(f"build/image.tar: {names.nmi} and {names.mic}, {size:.0f} MB unpacked; build/lab-images.tar")
    if size > BUDGET_MB:
        raise SystemExit(f"the image has {size:.0f} MB, more than the {BUDGET_MB} MB that it may have")


def _parts(version: str) -> list[tuple[str, Make, list[Path]]]:
    """The parts of podidentity's image: a name, what makes it below a root, and the files that it is made from."""
    tools = REPOSITORY / "tools/imaging"
    packages = python.packages_folder(version)

    def system(root: Path) -> None:
        debian.unpack(debian.fetch(version, CACHE), version, root)
        python.byte_compile([root / f"usr/lib/python{version}"], version, root)

    def dependencies(root: Path) -> None:
        python.install(python.project(REPOSITORY)["project"]["dependencies"], version, REPOSITORY, root / packages)
        python.byte_compile([root / packages], version, root)

    def podidentity(root: Path) -> None:
        python.install_podidentity(REPOSITORY, version, root)
        python.byte_compile([root / packages / "podidentity"], version, root)

    project = REPOSITORY / "pyproject.toml"
    sources = sorted(
        path for path in (REPOSITORY / "src").rglob("*") if path.is_file() and "__pycache__" not in path.parts
    )
    return [
        ("system", system, [tools / "debian.py"]),
        ("dependencies", dependencies, [tools / "python.py", project, REPOSITORY / "constraints.txt"]),
        ("podidentity", podidentity, [tools / "python.py", project, REPOSITORY / "README.md", *sources]),
    ]


def _application_sources() -> list[Path]:
    project = [REPOSITORY / "pyproject.toml", REPOSITORY / "constraints.txt", REPOSITORY / "tools/imaging/lab.py"]
    return [*project, *sorted((REPOSITORY / "examples/keyvault-app/keyvault_app").glob("*.py"))]


def _layer(name: str, make: Make, ingredients: Iterable[Path]) -> Path:
    """The layer `name`: the one from before, when it was made from the same."""
    digest = hashlib.sha256(sys.version.encode())
    for path in ingredients:
        digest.update(f"{path.relative_to(REPOSITORY)}\0".encode() + path.read_bytes())
    target = CACHE / f"{name}-{digest.hexdigest()[:16]}.layer"
    if target.exists():
        return target
    print(f"making the layer {name}")
    for old in CACHE.glob(f"{name}-*.layer"):
        old.unlink()
    root = CACHE / name
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    make(root)
    archive.layer(((path, str(path.relative_to(root))) for path in root.rglob("*")), target)
    return target


def _megabytes(root: Path) -> float:
    return sum(path.lstat().st_size for path in root.rglob("*") if not path.is_dir()) / 1e6


if __name__ == "__main__":
    main()
