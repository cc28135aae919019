"""What kind of lab a user asks for, and how the outer process hands that to the inner one. Values only."""

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from podidentity.errors import UsageError
from podidentity_lab.fabric import MOST_NODES

PodNetwork = Literal["bridge", "routed"]
KubernetesKind = Literal["embedded", "real"]

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")

_LISTEN = re.compile(r"(127\.0\.0\.1|0\.0\.0\.0):[1-9]\d{0,4}")
"""Other addresses would not be reached by what `lab env` prints, which names 127.0.0.1."""


@dataclass(frozen=True, slots=True)
class LabSettings:
    """A lab as the user asks for it.

    `listen` is the address and port of the Kubernetes API, with the proxy on the next port and the endpoint of managed
    identities on the one after it; empty: on 127.0.0.1, on ports that the kernel chooses.

    `late` is how many nodes, the last ones, wait until `lab join`; a real cluster's only.
    `virtual_machines` of the `nodes` are VMs of their own, the others share a scale set. `logs` is a directory that
    outlives the lab; None: they are in the lab's own and go with it. `state` is a file of `lab save`: the lab's
    Azure, and the objects of an embedded Kubernetes, are as they were then. `seed` is a file of what a fresh Azure
    has besides (see `seed`). `off_azure`: the nodes are no Azure machines; there is no IMDS.
    """

    name: str
    nodes: int = 2
    virtual_machines: int = 0
    network: PodNetwork = "routed"
    kubernetes: KubernetesKind = "embedded"
    late: int = 0
    logs: Path | None = None
    state: Path | None = None
    off_azure: bool = False
    seed: Path | None = None
    listen: str = ""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            message = (
                f"--name {self.name!r}: it is no name of a lab; use at most 32 lower-case letters, digits and dashes"
            )
            raise UsageError(message)
        if not 1 <= self.nodes <= MOST_NODES:
            raise UsageError(f"--nodes {self.nodes}: a lab has 1 to {MOST_NODES} nodes; use a number between")
        if not 0 <= self.virtual_machines <= self.nodes:
            message = f"--virtual-machines {self.virtual_machines}: there are {self.nodes} nodes; use no more than that"
            raise UsageError(message)
        if self.off_azure and self.virtual_machines:
            raise UsageError(f"--off-azure: {self.virtual_machines} nodes cannot be VMs of Azure then; leave one out")
        if self.listen and not _LISTEN.fullmatch(self.listen):
            message = f"--listen {self.listen}: a lab listens on 127.0.0.1:PORT or 0.0.0.0:PORT; use one of them"
            raise UsageError(message)
        if self.seed and self.state:
            raise UsageError(f"--seed {self.seed}: a saved lab has its own content; leave --seed or --state out")
        if self.late and (self.kubernetes != "real" or not 0 < self.late < self.nodes):
            raise UsageError(f"--late {self.late}: some of the nodes of a real cluster may be late, not all; use fewer")

    def addresses(self) -> list[tuple[str, int]]:
        """Return where to listen: for the Kubernetes API, the proxy and the identities; port 0: the kernel chooses."""
        address, _, port = self.listen.partition(":")
        return [(address, int(port) + number) for number in range(3)] if self.listen else [("127.0.0.1", 0)] * 3


@dataclass(frozen=True, slots=True)
class Inheritance:
    """What the outer process hands to the inner one: descriptors, and where to work."""

    settings: LabSettings
    directory: Path
    logs: Path
    kubernetes_listener: int
    gateway_listener: int
    identity_listener: int
    registry_listener: int
    owner: int
    diagnosis: int
    table: int
    lifeline: int
    report: int
    rootless: bool

    def render(self) -> str:
        """Return it as one argument of a command line; nothing in it is secret."""
        return json.dumps(asdict(self), default=str)


def parse(text: str) -> Inheritance:
    """Return the value that `Inheritance.render` wrote."""
    values = json.loads(text)
    settings = values.pop("settings")
    for name in ("logs", "state", "seed"):
        settings[name] = Path(settings[name]) if settings[name] else None
    directory, logs = Path(values.pop("directory")), Path(values.pop("logs"))
    return Inheritance(settings=LabSettings(**settings), directory=directory, logs=logs, **values)
