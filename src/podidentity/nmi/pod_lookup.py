"""Which pod is behind a connection, or why nobody can be sure: never a guess, never a default.

The address must belong to one live pod of this node, the watch must be fresh, and the packets must come in where that
pod's came in before: addresses are reused before the API server reports it. Every request is looked up, and again
after every wait.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from podidentity.bounded import BoundedDict, SingleFlight
from podidentity.core.model.snapshot import Pod
from podidentity.core.tokens.imds import Refusal
from podidentity.errors import KubernetesError, NotFoundError
from podidentity.nmi.ports import MOVED_SECONDS, WATCH_TRUSTED_SECONDS, Link, Peer, Pods
from podidentity.timing import Clock

_log = logging.getLogger(__name__)

_BEFORE_ANY_LIST = -float("inf")
_LINK_LIMIT = 4096
_LOOKUP_VALID_SECONDS = 1.0
_LOOKUPS_AT_ONCE = 4
_LOOKUP_QUEUE = 256


@dataclass(frozen=True, slots=True)
class NeedsLookup:
    """Only the API server itself can say which pod it is: ask it once, then decide again."""

    reason: str


@dataclass(frozen=True, slots=True)
class UnknownPeer:
    """Nobody is known to have the address: no pod has it, or the kubelet has not reported it to the API server yet."""

    address: str

    @property
    def message(self) -> str:
        """One sentence for the client."""
        return f"no pod of this node has the address {self.address}"


class DirectLookup(tuple[Pod, ...]):
    """The pods at an address, as the API server itself just reported them."""

    __slots__ = ()


class PodLookup:
    """Pods by connection. `lookup` in its methods is what `look` just returned, None when it was not needed."""

    def __init__(self, pods: Pods, clock: Clock) -> None:
        self._pods = pods
        self._clock = clock
        self._links: BoundedDict[str, Link] = BoundedDict(_LINK_LIMIT)
        self._interfaces: dict[str, int] = {}
        self._moves: dict[str, tuple[int, float]] = {}
        self._uids_at_ports: frozenset[str] = frozenset()
        self._deleted_uids: BoundedDict[str, None] = BoundedDict(_LINK_LIMIT)
        self._outcomes: BoundedDict[str, tuple[float, Sequence[Pod] | KubernetesError]] = BoundedDict(_LOOKUP_QUEUE)
        self._lookups: SingleFlight[str, Sequence[Pod] | KubernetesError] = SingleFlight()
        self._slots = asyncio.Semaphore(_LOOKUPS_AT_ONCE)

    def pod_of(self, peer: Peer, lookup: DirectLookup | None, now: float) -> Pod | NeedsLookup | UnknownPeer | Refusal:
        """Return the pod that `peer` is, `now` in steady seconds. Notes it in `peer`, and where its packets come in."""
        if lookup:
            return self._judge(peer, lookup, is_direct=True)
        confirmed_at = self._pods.confirmed_at()
        if now - confirmed_at <= WATCH_TRUSTED_SECONDS:
            pods = self._pods.with_address(peer.address)  # after a lookup too: the watch may know it by now
            if pods:
                return self._judge(peer, pods, is_direct=lookup is not None)
        elif confirmed_at == _BEFORE_ANY_LIST:
            return Refusal(503, "the pods of this node are not known yet; ask again in a moment")
        elif lookup is None:
            return NeedsLookup("the watch of pods has been silent for too long")
        return NeedsLookup(f"no pod is known at {peer.address}") if lookup is None else UnknownPeer(peer.address)

    async def look(self, peer: Peer) -> DirectLookup | Refusal:
        """Ask the API server which pods have the address; one request for all who ask within a second."""
        if len(self._lookups) >= _LOOKUP_QUEUE:
            return Refusal(503, "too many unknown addresses ask at once; ask again in a moment")
        outcome = await self._look_once(peer.address)
        if isinstance(outcome, NotFoundError):
            return DirectLookup()
        if isinstance(outcome, KubernetesError):
            return Refusal(503, f"the API server cannot say who has {peer.address}: {outcome}")
        return DirectLookup(pod for pod in outcome if not self._is_deleted(pod))

    def expect(self, uid: str, interface: int) -> None:
        """Note by which interface a pod's packets come in before it asks. The first one counts.

        Another one counts later, when it has been reported for a while and the API server itself says that the pod
        lives.
        """
        if self._interfaces.setdefault(uid, interface) == interface:
            self._moves.pop(uid, None)
        else:
            move = self._moves.get(uid)
            if move is None or move[0] != interface:
                self._moves[uid] = interface, self._clock.steady()

    def hold(self, uids: frozenset[str]) -> None:
        """Note of which pods, and no others, packets come in by their own port of a bridge or not at all."""
        self._uids_at_ports = uids

    def release(self, uid: str) -> None:
        """Drop where a pod's packets came in: it lives on in another sandbox."""
        self._links.pop(uid, None)
        self._interfaces.pop(uid, None)
        self._moves.pop(uid, None)

    def forget(self, uid: str) -> None:
        """Drop everything about a deleted pod, and believe no older lookup that still saw it."""
        self.release(uid)
        self._deleted_uids[uid] = None

    def _judge(self, peer: Peer, pods: Sequence[Pod], *, is_direct: bool) -> Pod | NeedsLookup | Refusal:
        if len(pods) > 1:
            names = " and ".join(sorted(str(pod.key) for pod in pods))
            return Refusal(503, f"{names} both claim the address {peer.address}; ask again when one of them is gone")
        (pod,) = pods
        if peer.uid and peer.uid != pod.uid:
            if not is_direct:
                return NeedsLookup(f"the pod at {peer.address} is another one")
            return Refusal(503, "this connection began as another pod's; open a new one")
        if peer.link is not None and not self._note_link(pod.uid, peer.link):
            if peer.link[1] is None:
                message = f"who is at {peer.address} cannot be told of this connection; open a new one"
                return Refusal(503, message)
            if not is_direct:
                return NeedsLookup(f"{peer.address} is now somewhere else on this node")
            if not (isinstance(pods, DirectLookup) and self._has_moved(pod, peer.link[0])):
                message = f"the address {peer.address} has moved but still belongs to pod {pod.key}; ask again"
                return Refusal(503, message)
            _log.info("pod %s at %s comes in by another interface: its sandbox was made anew", pod.key, peer.address)
            self.release(pod.uid)
            self._note_link(pod.uid, peer.link)
        peer.uid = pod.uid
        return pod

    def _is_deleted(self, pod: Pod) -> bool:
        """Whether the watch has reported that a pod is gone; one that only changed its addresses is listed again."""
        live_uids = (live.uid for address in pod.ips for live in self._pods.with_address(address))
        return pod.uid in self._deleted_uids and pod.uid not in live_uids

    def _note_link(self, uid: str, link: Link) -> bool:
        """Note where a pod's packets come in; return whether they came in like this before, or as its route says.

        Without a hardware address only a route or a pod's own port of a bridge counts, and nothing is noted: any pod
        can make the kernel lose the addresses of others, by many connections that it leaves half open.
        """
        if self._interfaces.get(uid, link[0]) != link[0]:
            return False
        if link[1] is None:
            return uid in self._interfaces or uid in self._uids_at_ports
        previous = self._links.get(uid)
        if previous is not None:
            return previous == link
        self._links[uid] = link
        return True

    def _has_moved(self, pod: Pod, interface: int) -> bool:
        """Whether a pod that the API server was just asked about lives on behind another interface."""
        move = self._moves.get(pod.uid)
        if move is None:
            return False
        new_interface, since = move
        return new_interface == interface and self._clock.steady() - since >= MOVED_SECONDS and not pod.ending

    async def _look_once(self, address: str) -> Sequence[Pod] | KubernetesError:
        latest = self._outcomes.get(address)
        if latest is not None and self._clock.steady() - latest[0] < _LOOKUP_VALID_SECONDS:
            return latest[1]
        return await self._lookups.run(address, lambda: self._ask(address))

    async def _ask(self, address: str) -> Sequence[Pod] | KubernetesError:
        outcome: Sequence[Pod] | KubernetesError
        async with self._slots:
            try:
                outcome = await self._pods.look(address)
            except KubernetesError as error:
                outcome = error
        self._outcomes[address] = (self._clock.steady(), outcome)
        return outcome
