"""Bills of materials, in CycloneDX: what each distribution installs, and what the images contain."""

import email.parser
import os
import subprocess
import sys
import uuid
import venv
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from packageurl import PackageURL

from artifacts import images
from artifacts.checkout import Checkout

SUFFIX = ".cdx.json"
DISTRIBUTION = "debian-12"


def of_distribution(checkout: Checkout, wheels: Iterable[Path], folder: Path, target: Path) -> Path:
    """Write the bill of what `wheels` install, in an environment of their own: the pinned versions."""
    environment = folder / target.name
    venv.create(environment, with_pip=False, symlinks=True, clear=True)
    python = environment / "bin/python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--disable-pip-version-check"]
    pip += ["--no-compile", "--constraint", str(checkout.root / "constraints.txt")]
    subprocess.run([*pip, *map(str, wheels)], check=True)
    for origin in environment.glob("lib/*/site-packages/*.dist-info/direct_url.json"):
        origin.unlink()  # the bill says what is installed, not in which folder of this machine the wheels were
    project = checkout.root / ("lab" if "_lab" in target.name else ".") / "pyproject.toml"
    command = [
        sys.executable,
        "-m",
        "cyclonedx_py",
        "environment",
        "--output-reproducible",
        "--pyproject",
        str(project),
    ]
    variables = {**os.environ, "SOURCE_DATE_EPOCH": str(checkout.epoch)}
    subprocess.run([*command, "--output-file", str(target), str(python)], env=variables, check=True)
    return target


def of_images(checkout: Checkout, archive: Path, target: Path) -> Path:
    """Write the bill of an image archive: each package of Debian and of Python whose record is in its layers."""
    bom = Bom(serial_number=uuid.uuid5(uuid.NAMESPACE_URL, f"podidentity/{archive.name}/{checkout.version}"))
    bom.metadata.timestamp = datetime.fromtimestamp(checkout.epoch, UTC)
    bom.metadata.component = Component(
        type=ComponentType.CONTAINER, name="podidentity", version=checkout.version, bom_ref="podidentity-images"
    )
    for path, content in images.files(archive):
        bom.components.add(_component(path, content.decode()))
    if not bom.components:
        raise SystemExit(f"{archive.name}: no record of a package is in it; make it with tools/image.py")
    writer = make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6)
    target.write_text(writer.output_as_string(indent=2) + "\n")
    return target


def _component(path: str, record: str) -> Component:
    fields = email.parser.Parser().parsestr(record)
    if path.endswith("METADATA"):
        url = PackageURL("pypi", name=fields["Name"].lower().replace("_", "-"), version=fields["Version"])
        return Component(name=fields["Name"], version=fields["Version"], purl=url, bom_ref=url.to_string())
    qualifiers = {"arch": fields["Architecture"], "distro": DISTRIBUTION}
    url = PackageURL("deb", "debian", fields["Package"], fields["Version"], qualifiers)
    return Component(name=fields["Package"], version=fields["Version"], purl=url, bom_ref=url.to_string())
