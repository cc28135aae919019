"""Builds a release into dist/: `make release`, from a clean checkout at its tag.

    release.py                       everything; the image is made first
    release.py --image FILE          with an image archive that tools/image.py made from the same commit
    release.py --registry NAME       where the images are published; their names in manifests and chart begin with it
    release.py --sign-key FILE       sign SHA256SUMS with an SSH key, beside the signature that the workflow makes

The same commit makes the same bytes: every time in them is the commit's.
"""

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from artifacts import checkout, images, installers, materials, notes, packages
from artifacts.checkout import Checkout
from deployment.settings import Images

REPOSITORY = Path(__file__).resolve().parents[1]
REGISTRY = "ghcr.io/podidentity"
SUMS = "SHA256SUMS"
NAMESPACE = "podidentity-release"
"""The purpose that a signature names (`ssh-keygen -Y`, -n)."""


def main(arguments: Sequence[str]) -> int:
    """Build; return the exit status. Raise `SystemExit` with what to do where this is no checkout of a release."""
    options = _parse(arguments)
    release = checkout.read(REPOSITORY)
    check_versions(release)
    target: Path = options.target
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    image = options.image or _make_image()
    for file in build(release, image, options.registry, target):
        print(f"{file.name}  {file.stat().st_size / 1e6:.1f} MB", flush=True)
    write_sums(target)
    if options.sign_key:
        sign(target / SUMS, options.sign_key)
    print(f"podidentity {release.version} is in {target}")
    return 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Build a release from a clean checkout at its tag.")
    parser.add_argument("--image", type=Path, help="an image archive of tools/image.py (default: make it)")
    parser.add_argument("--registry", default=REGISTRY, help="where images are published (default: %(default)s)")
    parser.add_argument("--target", type=Path, default=REPOSITORY / "dist", help="directory (default: dist)")
    parser.add_argument("--sign-key", type=Path, help="an SSH key that signs SHA256SUMS")
    return parser.parse_args(arguments)


def check_versions(release: Checkout) -> None:
    """Raise `SystemExit` where an image has another version than the packages."""
    tags = {name: image.rpartition(":")[2] for name, image in Images().by_name().items() if image in Images().local()}
    wrong = {name: tag for name, tag in tags.items() if tag != release.semantic_version}
    if wrong:
        raise SystemExit(
            f"tools/deployment/settings.py: the tags of {wrong} differ from {release.semantic_version}; correct them"
        )


def build(release: Checkout, image: Path, registry: str, target: Path) -> Iterable[Path]:
    """Yield each file of the release as soon as it is made."""
    yield from packages.build(release, target)
    wheels = {name: target / f"{name}-{release.version}-py3-none-any.whl" for name in packages.DISTRIBUTIONS}
    with tempfile.TemporaryDirectory() as folder:
        for name, wheel in wheels.items():
            requirements = {wheels["podidentity"], wheel}  # the lab depends on the product, of the same version
            bill = target / f"{name}-{release.version}{materials.SUFFIX}"
            yield materials.of_distribution(release, sorted(requirements), Path(folder), bill)
    archive = target / images.file_name()
    names = images.rename(image, registry, archive)
    yield archive
    yield materials.of_images(release, archive, archive.with_suffix(materials.SUFFIX))
    yield _write(target / "IMAGES", "".join(f"{name}\n" for name in names))
    for chart in installers.CHARTS:
        yield installers.package(release, chart, registry, target)
    yield installers.deploy(release, registry, target)
    yield _write(target / "NOTES.md", notes.section_of(release))


def write_sums(target: Path) -> None:
    """Write the digests of all files, as `sha256sum --check` reads them."""
    lines = []
    for file in sorted(target.iterdir()):
        with file.open("rb") as content:
            lines.append(f"{hashlib.file_digest(content, 'sha256').hexdigest()}  {file.name}\n")
    _write(target / SUMS, "".join(lines))


def sign(file: Path, key: Path) -> None:
    """Sign `file` with an SSH key; the signature gets its name and `.sig`."""
    command = ["ssh-keygen", "-q", "-Y", "sign", "-f", str(key), "-n", NAMESPACE, str(file)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


def _make_image() -> Path:
    subprocess.run([sys.executable, REPOSITORY / "tools/image.py", "--product"], check=True)
    return REPOSITORY / "build/image.tar"


def _write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
