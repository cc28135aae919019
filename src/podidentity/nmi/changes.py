"""What a change in the cluster or on this host means for the parts: whom to wake, what to forget, what to reset."""

from podidentity.core.model.arm import IdentityId
from podidentity.core.model.identities import ObjectKey
from podidentity.core.tokens.sources import Source
from podidentity.issuance.cache import Cache
from podidentity.nmi.access import Access
from podidentity.nmi.listener import Listener
from podidentity.nmi.pod_lookup import PodLookup
from podidentity.nmi.waiting import Waiting
from podidentity.nmi.warming import Warming


class ClusterChanges:
    """Passes on what the watches tell."""

    def __init__(
        self,
        waiting: Waiting,
        pod_lookup: PodLookup,
        access: Access,
        cache: Cache,
        warming: Warming,
        listener: Listener,
    ) -> None:
        self._waiting = waiting
        self._finding = pod_lookup
        self._access = access
        self._cache = cache
        self._warming = warming
        self._listener = listener

    def pod_changed(self, pod: ObjectKey) -> None:
        """Wake the requests that wait for something about `pod`; fetch its tokens while it starts."""
        self._waiting.wake(pod)
        self._warming.pod_changed(pod)

    def pod_at(self, address: str) -> None:
        """Wake the requests that wait for a pod to be known at `address`."""
        self._waiting.wake(address)

    def pod_gone(self, uid: str) -> None:
        """Forget a pod and reset its connections: its address may be another's in a moment."""
        self._finding.forget(uid)
        self._access.forget(uid)
        self._listener.reset_pod(uid)

    def source_unused(self, source: Source) -> None:
        """Drop the tokens of `source`, which no identity of this node rests on any more."""
        self._cache.forget(source)

    def identities_came(self, identities: frozenset[IdentityId]) -> None:
        """Ask IMDS again for identities that it did not know and that are on the machine now."""
        for source in self._access.take_missing(identities):
            self._cache.forget(source)

    def anything_changed(self) -> None:
        """Wake every request that waits."""
        self._waiting.wake_all()


class HostChanges:
    """Passes on what anti-spoofing sees of interfaces and ports."""

    def __init__(self, pod_lookup: PodLookup, listener: Listener) -> None:
        self._finding = pod_lookup
        self._listener = listener

    def expect(self, uid: str, interface: int) -> None:
        """Expect a pod's packets on `interface` alone."""
        self._finding.expect(uid, interface)

    def hold(self, uids: frozenset[str]) -> None:
        """Trust the addresses of these pods: their own port of a bridge alone lets them in."""
        self._finding.hold(uids)

    def reset_interface(self, interface: int) -> None:
        """Reset the connections that came in by an interface that no longer exists."""
        self._listener.reset_link(interface)

    def reset_pod(self, uid: str) -> None:
        """Reset the connections of a pod that has lost its port of a bridge."""
        self._listener.reset_pod(uid)

    def release(self, uid: str) -> None:
        """Learn anew where a pod's packets come in."""
        self._finding.release(uid)
