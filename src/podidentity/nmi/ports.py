"""What NMI needs from the outside, as small Protocols, and the few values that pass through them.

`daemon` plugs Kubernetes, IMDS and this host in; tests plug fakes in. Cache, limits and retries are wrappers that are
`Tokens` themselves.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from podidentity.core.cluster import Pod
from podidentity.core.identities import AzureAssignedIdentity, AzurePodIdentityException, ObjectKey, SecretReference
from podidentity.core.imds import Token
from podidentity.core.matching import Match
from podidentity.core.sources import Source

Grant = Token | tuple[Token, ...]
"""What a source gives: one token, or for a service principal with auxiliary tenants one for each tenant."""

SecretContents = Mapping[str, bytes]
"""The keys of a Secret and what they hold."""

WATCH_TRUSTED_SECONDS = 120.0
"""A watch is confirmed by bookmarks about once a minute; one that has been silent for twice that may be dead."""

MOVED_SECONDS = 60.0
"""How long a pod's address must have been elsewhere on this node before the pod is believed to be there.

Then its sandbox was made anew, if the API server still says that the pod lives: a kubelet that could give the address
to another pod has said within seconds that this one ended, and says it again every 10 s.
"""


class Clock(Protocol):
    """Both kinds of time, in seconds. Tests bring one that jumps."""

    def wall(self) -> float:
        """Seconds since 1970; may jump when somebody sets the clock."""

    def steady(self) -> float:
        """Seconds since some moment; never jumps."""

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds` of steady time."""


class Tokens(Protocol):
    """Where a token comes from. Wrappers (cache, limit, retry) are Tokens too."""

    async def acquire(self, source: Source, resource: str) -> Grant:
        """Return a valid token. Raises `AzureError`, or another `PodIdentityError` that says what to set right."""


class Secrets(Protocol):
    """Kubernetes Secrets, one at a time."""

    async def read_secret(self, secret: SecretReference) -> SecretContents:
        """Ask the API server itself. Raises `KubernetesError`."""


class Pods(Protocol):
    """The pods of this node, by address."""

    def at(self, address: str, /) -> Sequence[Pod]:
        """Return the live pods with a network of their own that claim `address`, as the watch told."""

    def confirmed(self) -> float:
        """Say when the watch was last known to be true, in the clock's steady seconds; -inf before the first list."""

    async def look(self, address: str) -> Sequence[Pod]:
        """Ask the API server itself, once. Raises `KubernetesError`."""


class Grants(Protocol):
    """Who may use which identity."""

    @property
    def revision(self) -> int:
        """A number that grows with each change: what was decided under another one is decided anew."""

    def granted_as_of(self) -> float:
        """Say when this was last known to be true, in steady seconds; -inf before everything was listed."""

    def assigned_to(self, pod: ObjectKey) -> Sequence[AzureAssignedIdentity]:
        """Return the assigned identities that name the pod (standard mode)."""

    def bound_to(self, pod: Pod) -> Sequence[Match]:
        """Return what the bindings of the pod's namespace give it, in binding order (managed mode)."""

    def exceptions_in(self, namespace: str) -> Sequence[AzurePodIdentityException]:
        """Return the exceptions of a namespace."""


@dataclass(slots=True)
class Peer:
    """The other end of one connection.

    `link` is where its packets come in (interface and source MAC, which is None when the kernel has lost it; None when
    neither can be told). `uid` is the pod it was first found to be, for the connection's whole life.
    """

    address: str
    link: tuple[int, bytes | None] | None = None
    uid: str = ""
    port: int = field(default=0, compare=False)
