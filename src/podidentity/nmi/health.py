"""How NMI is: whether it intercepts, what stands between pods and their tokens, and what else is amiss."""

from collections.abc import Sequence

from podidentity.nmi.adapters.anti_spoof import AntiSpoof
from podidentity.nmi.adapters.cluster import Cluster
from podidentity.nmi.adapters.redirect import Redirect
from podidentity.nmi.listener import Listener


class Health:
    """The state of the parts as sentences. `redirect` and `anti_spoof` are None when something else intercepts."""

    def __init__(
        self, cluster: Cluster, listener: Listener, redirect: Redirect | None, anti_spoof: AntiSpoof | None
    ) -> None:
        self._cluster = cluster
        self._listener = listener
        self._redirect = redirect
        self._anti_spoof = anti_spoof

    def is_intercepting(self) -> bool:
        """Whether pods that ask IMDS are sent here and somebody listens."""
        return bool(self._listener.doors) and (self._redirect is None or self._redirect.is_in_place)

    def is_ready(self) -> bool:
        """Whether nothing is missing."""
        return not self.missing()

    def missing(self) -> tuple[str, ...]:
        """Return what stands between this node's pods and their tokens, one sentence each."""
        delays = self._cluster.delays()
        return delays if self._redirect is None else (*self._redirect.troubles(), *delays)

    def warnings(self) -> Sequence[str]:
        """Return what this host cannot see or prevent, one sentence each."""
        parts = (self._redirect, self._anti_spoof)
        return tuple(warning for part in parts if part is not None for warning in part.warnings())
