"""Debian's buildah, which builds from Dockerfiles without a daemon or a registry."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[3]
BASE = "docker.io/library/debian:bookworm-slim"
CERTIFICATES = Path(os.environ.get("SSL_CERT_FILE", "/etc/ssl/certs/ca-certificates.crt"))


@dataclass(frozen=True, slots=True)
class Buildah:
    """Buildah with a storage of its own; it needs no daemon and no registry."""

    storage: Path

    def run(self, *words: str) -> str:
        """Run it and return what it prints. Raises `CalledProcessError`."""
        where = ("--root", str(self.storage / "root"), "--runroot", str(self.storage / "run"))
        command = ["buildah", *where, "--storage-driver", "vfs", *words]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def image(self, target: str) -> str:
        """Build a target of the Dockerfile and return its name."""
        return self.build(target, f"--target={target}")

    def build(self, name: str, *words: str) -> str:
        """Build an image from this checkout and return its name; `words` say what of it."""
        settings = self.storage / "pip.conf"
        settings.write_text("[global]\ncert = /certificates.crt\n")
        volumes = (f"--volume={settings}:/etc/pip.conf:ro", f"--volume={CERTIFICATES}:/certificates.crt:ro")
        self.run("build", "--isolation=chroot", "--pull-never", *volumes, *words, "--tag", name, ".")
        return f"localhost/{name}"

    def root(self, image: str) -> Path:
        """Return the root of a new container of an image."""
        return Path(self.run("mount", self.run("from", "--pull-never", image)))

    def run_in(self, image: str, rights: str, script: str) -> str:
        """Run a shell script in a new container of an image, in a chroot with these capabilities."""
        container = self.run("from", "--pull-never", image)
        return self.run("run", "--isolation=chroot", f"--cap-add={rights}", container, "--", "sh", "-ec", script)
