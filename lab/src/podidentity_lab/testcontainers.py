"""The lab as a container for tests, with Testcontainers: `pip install podidentity-lab[testcontainers]`.

The image is made from `lab/Dockerfile`. The container is privileged: it makes networks of its own. What a test needs
of it is fetched from it, so nothing is shared with the host but its three published ports.
"""

import io
import json
import os
import shlex
import shutil
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any, Self

from docker.errors import NotFound
from testcontainers.core.container import DockerContainer

from podidentity.errors import LabError
from podidentity_lab import environment
from podidentity_lab.directory import DEFAULT_NAME, Directory

IMAGE = "podidentity-lab"
KUBERNETES_PORT, GATEWAY_PORT, IDENTITY_PORT = 16443, 16444, 16445
INSIDE = Directory(Path("/podidentity-labs") / DEFAULT_NAME)
"""The lab's files in the container."""
POLL_SECONDS = 0.2
START_SECONDS = 120.0
_END_STATES = frozenset({"exited", "dead", "removing"})


class LabContainer(DockerContainer):
    """A lab in a container. `with LabContainer() as lab:` begins when it is ready.

    `up` are further words for `podidentity lab up`, such as `("--nodes", "1")`.
    """

    def __init__(self, image: str = IMAGE, up: tuple[str, ...] = (), **words: Any) -> None:
        super().__init__(image, **words)
        self.with_exposed_ports(KUBERNETES_PORT, GATEWAY_PORT, IDENTITY_PORT)
        self.with_command(["up", "--listen", f"0.0.0.0:{KUBERNETES_PORT}", *up])
        self.with_kwargs(privileged=True)
        self._folder = Path()

    def start(self) -> Self:
        """Start the container and wait until the lab is ready. Raises `LabError` with its last words."""
        super().start()
        deadline = time.monotonic() + START_SECONDS
        while (facts := self._read(INSIDE.facts_file)) is None:
            container = self.get_wrapped_container()
            container.reload()
            if container.status in _END_STATES or time.monotonic() > deadline:
                output = b"".join(self.get_logs()).decode(errors="replace").strip()
                self.stop()
                last = output.splitlines()[-1] if output else "it said nothing"
                raise LabError(f"the container of the lab did not become ready: {last}; run it privileged")
            time.sleep(POLL_SECONDS)
        self._folder = Path(tempfile.mkdtemp(prefix="podidentity-lab-"))
        self._take_files(json.loads(facts))
        return self

    def stop(self, *words: Any, **options: Any) -> None:
        """Remove the container and what was fetched from it."""
        super().stop(*words, **options)
        if self._folder.name:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = Path()

    @property
    def directory(self) -> Directory:
        """The lab's files on this host while it is up, with the ports that the host reaches."""
        return Directory(self._folder)

    def environment(self) -> dict[str, str]:
        """Return the environment in which a program of the host works with the lab, as its owner.

        The variables are those of `podidentity lab env`.
        """
        return environment.merge(os.environ, environment.variables(self.directory), self.directory)

    def run(self, *words: str) -> str:
        """Run a `podidentity lab` command in the container; return its output. Raises `LabError` when it fails."""
        status, output = self.exec(["podidentity", "lab", *words])
        text = bytes(output or b"").decode(errors="replace")
        if status:
            raise LabError(f"podidentity lab {shlex.join(words)}: {text.strip() or f'exit status {status}'}")
        return text

    def _take_files(self, facts: dict[str, Any]) -> None:
        """Fetch the lab's files, and put in the ports by which this host reaches the container."""
        lab = self.directory
        ports = {"kubernetes": KUBERNETES_PORT, "gateway": GATEWAY_PORT, "identity": IDENTITY_PORT}
        published = {f"{name}_port": int(self.get_exposed_port(port)) for name, port in ports.items()}
        for path in (INSIDE.ca, INSIDE.java_trust_store):
            (lab.path / path.name).write_bytes(self._require(path))
        kubeconfig = self._require(INSIDE.kubeconfig).decode()
        address = f"127.0.0.1:{facts['kubernetes_port']}"
        lab.write(lab.kubeconfig, kubeconfig.replace(address, f"127.0.0.1:{published['kubernetes_port']}"))
        lab.write(lab.facts_file, json.dumps({**facts, **published}))

    def _require(self, path: Path) -> bytes:
        content = self._read(path)
        if content is None:
            raise LabError(f"{path}: the container has no such file; use an image made from lab/Dockerfile")
        return content

    def _read(self, path: Path) -> bytes | None:
        """Return a file of the container; None when it is not there."""
        try:
            chunks, _ = self.get_wrapped_container().get_archive(str(path))
        except NotFound:
            return None
        with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as archive:
            stream = archive.extractfile(path.name)
            return None if stream is None else stream.read()
