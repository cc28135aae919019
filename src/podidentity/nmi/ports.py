"""What NMI needs from the outside, as small Protocols, and the few values that pass through them.

`wiring` plugs in Kubernetes, IMDS and this host; tests plug in fakes. Where tokens come from is `issuance.ports`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from podidentity.core.model.arm import IdentityId
from podidentity.core.model.identities import (
    AzureAssignedIdentity,
    AzurePodIdentityException,
    SecretReference,
)
from podidentity.core.model.matching import Match
from podidentity.core.model.snapshot import Pod

SecretContents = Mapping[str, bytes]
"""The keys of a Secret and what they hold."""

Link = tuple[int, bytes | None]
"""An interface and the sender's hardware address, which is None when the kernel has lost it."""

LOCAL_PEER = "local socket"
"""Stands for the address of a client of the Unix socket, which has none."""

LOOPBACK = "127.0.0.1"

ROOT_UID = 0

WATCH_TRUSTED_SECONDS = 120.0
"""A watch is confirmed by bookmarks about once a minute; one that has been silent for twice that may be dead."""

MOVED_SECONDS = 60.0
"""How long a pod's address must have been elsewhere on this node before the pod is believed to be there.

Then its sandbox was made anew, if the API server still says that the pod lives: a kubelet that could give the address
to another pod has said within seconds that this one ended, and says it again every 10 s.
"""


class Secrets(Protocol):
    """Kubernetes Secrets, one at a time."""

    async def read_secret(self, secret: SecretReference) -> SecretContents:
        """Return a Secret, read from the API server now. Raises `KubernetesError`."""


class Pods(Protocol):
    """The pods of this node, by address."""

    def with_address(self, address: str, /) -> Sequence[Pod]:
        """Return the live pods with a network of their own that claim `address`, as the watch reports."""

    def confirmed_at(self) -> float:
        """Return when the watch was last known to be true, in steady seconds; -inf before the first list."""

    async def look(self, address: str) -> Sequence[Pod]:
        """Return the pods with `address`, from the API server itself. Raises `KubernetesError`."""


class Grants(Protocol):
    """Who may use which identity."""

    def revision_of(self, pod: Pod, /) -> int:
        """Return a number that grows with each change that concerns `pod`: what rests on another is decided anew."""

    def grants_confirmed_at(self) -> float:
        """Return when this was last known to be true, in steady seconds; -inf before everything was listed."""

    @property
    def decides(self) -> bool:
        """Return whether NMI decides by itself what MIC would assign; else it goes by MIC's objects."""

    def there_since(self, identity: IdentityId) -> float | None:
        """Return since when MIC says that an identity is on this node's machine, in steady seconds; None: it does not.

        What it said before NMI's start counts from there.
        """

    def assigned_to(self, pod: Pod) -> Sequence[AzureAssignedIdentity]:
        """Return what MIC assigns to the pod (standard mode)."""

    def bound_to(self, pod: Pod) -> Sequence[Match]:
        """Return what the bindings of the pod's namespace give it, in binding order (managed mode)."""

    def exceptions_in(self, namespace: str) -> Sequence[AzurePodIdentityException]:
        """Return the exceptions of a namespace."""


@dataclass(slots=True)
class Peer:
    """The other end of one connection.

    `link` is where its packets come in, None when the kernel does not say. `uid` is the pod it first was, for the
    connection's whole life.
    """

    address: str
    link: Link | None = None
    uid: str = ""
    port: int = field(default=0, compare=False)
