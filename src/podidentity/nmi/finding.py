"""Finds the pod behind a connection, or says why nobody can be sure: never a guess, never a default.

The address must belong to one live pod of this node, the watch must be fresh, and the packets must come in where that
pod's came in before: addresses are reused before the API server says so. Called by `token` on each request, again
after every wait.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from podidentity.core.cluster import Pod
from podidentity.core.imds import Refusal
from podidentity.errors import KubernetesError, NotFoundError
from podidentity.nmi.ports import MOVED_SECONDS, WATCH_TRUSTED_SECONDS, Clock, Peer, Pods

_log = logging.getLogger(__name__)

_NEVER = -float("inf")
_REMEMBERED_LINKS = 4096
_LOOK_KEPT_SECONDS = 1.0
_LOOKS_AT_ONCE = 4
_LOOK_QUEUE = 256


@dataclass(frozen=True, slots=True)
class Look:
    """Only the API server itself can say: ask it once, then look again."""

    why: str


@dataclass(frozen=True, slots=True)
class Stranger:
    """Nobody is known to have the address: no pod has it, or the kubelet has not told the API server yet."""

    address: str

    @property
    def why(self) -> str:
        """One sentence."""
        return f"no pod of this node has the address {self.address}"


class Looked(tuple[Pod, ...]):
    """What the API server itself just said of an address."""

    __slots__ = ()


class Finding:
    """Pods by connection. `looked` in its methods is what a direct look just returned, None when there was none.

    `held` says of a pod, by UID, that packets with its addresses come in by its own port of a bridge or not at all.
    """

    held: Callable[[str], bool] = staticmethod(lambda _: False)

    def __init__(self, pods: Pods, clock: Clock) -> None:
        self._pods = pods
        self._clock = clock
        self._links: OrderedDict[str, tuple[int, bytes | None]] = OrderedDict()
        self._homes: dict[str, int] = {}
        self._moving: dict[str, tuple[int, float]] = {}
        self._gone: OrderedDict[str, None] = OrderedDict()
        self._looks: OrderedDict[str, tuple[float, Sequence[Pod] | KubernetesError]] = OrderedDict()
        self._under_way: dict[str, asyncio.Future[None]] = {}
        self._slots = asyncio.Semaphore(_LOOKS_AT_ONCE)

    def pod_of(self, peer: Peer, looked: Looked | None, now: float) -> Pod | Look | Stranger | Refusal:
        """Say which pod `peer` is, `now` in steady seconds. Remembers it, and where that pod's packets come in."""
        if looked:
            return self._judge(peer, looked, directly=True)
        confirmed = self._pods.confirmed()
        if now - confirmed <= WATCH_TRUSTED_SECONDS:
            found = self._pods.at(peer.address)  # after a look too: the watch may have told of it since
            if found:
                return self._judge(peer, found, directly=looked is not None)
        elif confirmed == _NEVER:
            return Refusal(503, "the pods of this node are not known yet; ask again in a moment")
        elif looked is None:
            return Look("the watch of pods has been silent for too long")
        return Look(f"no pod is known at {peer.address}") if looked is None else Stranger(peer.address)

    async def look(self, peer: Peer) -> Looked | Refusal:
        """Ask the API server who has the address; one question for all who ask within a second."""
        if len(self._under_way) >= _LOOK_QUEUE:
            return Refusal(503, "too many unknown addresses ask at once; ask again in a moment")
        outcome = await self._look_once(peer.address)
        if isinstance(outcome, NotFoundError):
            return Looked()
        if isinstance(outcome, KubernetesError):
            return Refusal(503, f"the API server cannot say who has {peer.address}: {outcome}")
        return Looked(pod for pod in outcome if not self._is_gone(pod))

    def expect(self, uid: str, interface: int) -> None:
        """Learn by which interface a pod's packets come in before it asks. The first word counts.

        Another one counts later, when it has stood for a while and the API server itself says that the pod lives.
        """
        if self._homes.setdefault(uid, interface) == interface:
            self._moving.pop(uid, None)
        elif self._moving.get(uid, (0, 0.0))[0] != interface:
            self._moving[uid] = interface, self._clock.steady()

    def release(self, uid: str) -> None:
        """Drop where a pod's packets came in: it lives on in another sandbox."""
        self._links.pop(uid, None)
        self._homes.pop(uid, None)
        self._moving.pop(uid, None)

    def forget(self, uid: str) -> None:
        """Drop what is remembered of a pod that is gone, and never believe an older look that still saw it."""
        self.release(uid)
        self._gone[uid] = None
        while len(self._gone) > _REMEMBERED_LINKS:
            self._gone.popitem(last=False)

    def _judge(self, peer: Peer, found: Sequence[Pod], *, directly: bool) -> Pod | Look | Refusal:
        if len(found) > 1:
            names = " and ".join(sorted(str(pod.key) for pod in found))
            return Refusal(503, f"{names} both claim the address {peer.address}; ask again when one of them is gone")
        pod = found[0]
        if peer.uid and peer.uid != pod.uid:
            if not directly:
                return Look(f"the pod at {peer.address} is another one")
            return Refusal(503, "this connection began as another pod's; open a new one")
        if peer.link is not None and not self._is_home(pod.uid, peer.link):
            if peer.link[1] is None:
                told = f"who is at {peer.address} cannot be told of this connection; open a new one"
                return Refusal(503, told)
            if not directly:
                return Look(f"{peer.address} is now somewhere else on this node")
            if not (isinstance(found, Looked) and self._has_moved(pod, peer.link[0])):
                told = f"the address {peer.address} has moved but still belongs to pod {pod.key}; ask again"
                return Refusal(503, told)
            _log.info("pod %s at %s comes in by another interface: its sandbox was made anew", pod.key, peer.address)
            self.release(pod.uid)
            self._is_home(pod.uid, peer.link)
        peer.uid = pod.uid
        return pod

    def _is_gone(self, pod: Pod) -> bool:
        """Say whether the watch has told that a pod is gone; one that only changed its addresses is there again."""
        back = (known.uid for address in pod.ips for known in self._pods.at(address))
        return pod.uid in self._gone and pod.uid not in back

    def _is_home(self, uid: str, link: tuple[int, bytes | None]) -> bool:
        """Say whether a pod's packets came in like this before, or as its route told; what is new is remembered.

        Without a hardware address only a route counts, or a port that is held, and nothing is remembered: any pod can
        bring the kernel to lose those of others, by many connections that it leaves half open.
        """
        if self._homes.get(uid, link[0]) != link[0]:
            return False
        if link[1] is None:
            return uid in self._homes or self.held(uid)
        known = self._links.get(uid)
        if known is not None:
            return known == link
        self._links[uid] = link
        while len(self._links) > _REMEMBERED_LINKS:
            self._links.popitem(last=False)
        return True

    def _has_moved(self, pod: Pod, interface: int) -> bool:
        """Say whether a pod that the API server was just asked about lives on behind another interface."""
        route, since = self._moving.get(pod.uid, (0, 0.0))
        return route == interface and self._clock.steady() - since >= MOVED_SECONDS and not pod.ending

    async def _look_once(self, address: str) -> Sequence[Pod] | KubernetesError:
        while address in self._under_way:
            await asyncio.shield(self._under_way[address])
        kept = self._looks.get(address)
        if kept is not None and self._clock.steady() - kept[0] < _LOOK_KEPT_SECONDS:
            return kept[1]
        done = self._under_way[address] = asyncio.get_running_loop().create_future()
        try:
            outcome = await self._ask(address)
            self._looks[address] = (self._clock.steady(), outcome)
            self._looks.move_to_end(address)
            while len(self._looks) > _LOOK_QUEUE:
                self._looks.popitem(last=False)
            return outcome
        finally:
            del self._under_way[address]
            done.set_result(None)

    async def _ask(self, address: str) -> Sequence[Pod] | KubernetesError:
        async with self._slots:
            try:
                return await self._pods.look(address)
            except KubernetesError as error:
                return error
