"""What a lab is asked to be, and how its two processes tell each other. Values only. Called by `up` and `inside`."""

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from podidentity.errors import UsageError
from podidentity.lab.fabric import MOST_NODES

PodNetwork = Literal["bridge", "routed"]
KubernetesKind = Literal["embedded", "real"]

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class LabSettings:
    """A lab as the user asks for it.

    `late` is how many nodes, the last ones, wait until `lab join`; a real cluster's only.
    `virtual_machines` of the `nodes` are VMs of their own, the others share a scale set. `logs` is a directory that
    outlives the lab; None: they are in the lab's own and go with it. `azure` is a file of `lab save`: the lab's Azure
    is as it was then.
    """

    name: str
    nodes: int = 2
    virtual_machines: int = 0
    network: PodNetwork = "routed"
    kubernetes: KubernetesKind = "embedded"
    late: int = 0
    logs: Path | None = None
    azure: Path | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            told = f"--name {self.name!r}: use at most 32 lower-case letters, digits and dashes."
            raise UsageError(told)
        if not 1 <= self.nodes <= MOST_NODES:
            raise UsageError(f"--nodes {self.nodes}: a lab has 1 to {MOST_NODES} nodes.")
        if not 0 <= self.virtual_machines <= self.nodes:
            told = f"--virtual-machines {self.virtual_machines}: at most as many as there are nodes, {self.nodes}."
            raise UsageError(told)
        if self.late and (self.kubernetes != "real" or not 0 < self.late < self.nodes):
            raise UsageError(
                f"--late {self.late}: some of the nodes of a lab with --kubernetes real may be late, not all."
            )


@dataclass(frozen=True, slots=True)
class Inherited:
    """What the outer process hands to the inner one: descriptors, and where to work."""

    settings: LabSettings
    directory: Path
    logs: Path
    kubernetes_listener: int
    gateway_listener: int
    lifeline: int
    report: int
    rootless: bool

    def render(self) -> str:
        """As one argument of a command line; nothing in it is secret."""
        return json.dumps(asdict(self), default=str)


def parse(text: str) -> Inherited:
    """Read what `Inherited.render` wrote."""
    values = json.loads(text)
    asked = values.pop("settings")
    for name in ("logs", "azure"):
        asked[name] = Path(asked[name]) if asked[name] else None
    directory, logs = Path(values.pop("directory")), Path(values.pop("logs"))
    return Inherited(settings=LabSettings(**asked), directory=directory, logs=logs, **values)
