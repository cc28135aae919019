"""The trail of a request: from the pod through NMI, the broker, IMDS and Entra ID to the service that takes the token.

No station's log names the request of another one: there is no ID that travels with it. A trail is therefore put
together by what the stations have in common, and only where all of it agrees: who asked, from which node, for which
identity and resource, and when. What fits no trail begins one. Nothing here does I/O.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from podidentity.bounded import BoundedDict
from podidentity_lab.page.events import BROKER, ENTRA, IMDS, NMI, RESOURCES, Event, host_of, is_same_client

TRAILS_LIMIT = 400
KEYS_LIMIT = 2_000
CANDIDATES_LIMIT = 16
"""How many trails of one pod, or for one resource of one node or broker, an event is compared with."""
STEPS_LIMIT = 16
"""Steps of a trail: of the calls that many pods share, the further ones are trails of their own."""
SLACK_SECONDS = 0.5
"""How far two logs of one machine may disagree: each line is written a little after what it is about."""
RETRY_SLACK_SECONDS = 0.005
"""Likewise for a further call of a station that the trail has already: it is a retry, or another request's."""
USE_SECONDS = 5.0
"""How long after a token was issued its first use counts as the same request's."""
_ORDER = {NMI: 0, BROKER: 1, IMDS: 2, ENTRA: 3, **dict.fromkeys(RESOURCES, 4)}
_LAST = 5  # a host that Azure does not have
_ISSUERS = (NMI, BROKER, IMDS, ENTRA)

_Key = tuple[str, str, str]


@dataclass(slots=True)
class Trail:
    """What is known of one request. `steps` are in the order in which a request takes them."""

    number: int
    steps: list[Event] = field(default_factory=list)
    was_refused: bool = False
    """Whether it was refused when it was counted last."""

    def step(self, station: str) -> Event | None:
        """Return the last step at a station, or None."""
        return next((step for step in reversed(self.steps) if step.station == station), None)

    @property
    def head(self) -> Event:
        """The step nearest to whoever asked."""
        return self.steps[0]

    @property
    def refusal(self) -> Event | None:
        """The refusal that the request ended with, or None: an answer nearer to the asker makes good for others."""
        last_use = next((step for step in reversed(self.steps) if step.station in RESOURCES), None)
        if last_use is not None and last_use.is_refused:
            return last_use
        return self.head if self.head.is_refused else None

    @property
    def identity(self) -> str:
        """The name of the identity, as Azure has it where that is known."""
        return next((step.identity for step in reversed(self.steps) if step.identity), "")

    @property
    def client_id(self) -> str:
        """The client ID of the identity, in full where that is known."""
        known_ids = [step.client_id for step in self.steps if step.client_id]
        return next((client_id for client_id in known_ids if "#" not in client_id), known_ids[0] if known_ids else "")

    def add(self, event: Event) -> None:
        """Put a step where it belongs."""
        self.steps.append(event)
        self.steps.sort(key=lambda step: (_ORDER.get(step.station, _LAST), step.time))


class Trails:
    """The last trails. An event joins the youngest one that it fits, or begins one."""

    def __init__(self) -> None:
        self._trails: BoundedDict[int, Trail] = BoundedDict(TRAILS_LIMIT)
        self._by_key: BoundedDict[_Key, deque[Trail]] = BoundedDict(KEYS_LIMIT)
        self.next_number = 1

    def add(self, event: Event) -> Trail:
        """Take one event; return the trail that it is a step of."""
        trail = next((trail for trail in self._candidates(event) if fits(trail, event)), None)
        if trail is None:
            trail = self._trails[self.next_number] = Trail(self.next_number)
            self.next_number += 1
        trail.add(event)
        for key in _keys(event):
            trails = self._by_key.get(key) or deque(maxlen=CANDIDATES_LIMIT)
            if trail not in trails:
                trails.append(trail)
            self._by_key[key] = trails
        return trail

    def last(self, count: int) -> list[Trail]:
        """Return the youngest trails, the oldest of them first."""
        return list(self._trails.values())[-count:]

    def _candidates(self, event: Event) -> Iterator[Trail]:
        for key in _keys(event):
            yield from reversed(self._by_key.get(key) or ())


def fits(trail: Trail, event: Event) -> bool:
    """Whether an event can be a step of a trail: a station on the way to the token, or its first use."""
    if len(trail.steps) >= STEPS_LIMIT:
        return False
    if event.station in RESOURCES:
        return _is_first_use(trail, event)
    if trail.head.station in RESOURCES:
        return _is_use(event, event.client_id, trail.head)  # the use was read first
    if event.station == NMI:
        broker = trail.step(BROKER)  # what is behind it is the broker's
        inner_steps = [broker] if broker else [step for step in trail.steps if step.station not in RESOURCES]
        return trail.step(NMI) is None and all(_is_behind(event, step) for step in inner_steps)
    if event.station == BROKER:
        nmi, entra = trail.step(NMI), trail.step(ENTRA)
        has_room = trail.step(BROKER) is None and (nmi or entra) is not None
        return has_room and (nmi is None or _is_behind(nmi, event)) and (entra is None or _is_behind(event, entra))
    front = trail.step(NMI) if event.station == IMDS else (trail.step(BROKER) or trail.step(NMI))
    slack_seconds = SLACK_SECONDS if trail.step(event.station) is None else RETRY_SLACK_SECONDS
    return front is not None and _is_behind(front, event, slack_seconds)


def _is_behind(front: Event, event: Event, slack_seconds: float = SLACK_SECONDS) -> bool:
    """Whether `front`, a daemon's answer, can have waited for `event`."""
    if front.cached and event.station != BROKER:
        return False
    if not front.start - slack_seconds <= event.time <= front.time + slack_seconds:
        return False
    if host_of(front.resource) != host_of(event.resource):
        return False
    return _is_asker(front, event) and _is_same_identity(front, event)


def _is_asker(front: Event, event: Event) -> bool:
    if front.station == NMI and event.station == BROKER:
        return front.asker == event.asker
    # NMI asks from the node's own network, a broker from its pod.
    return front.place == event.asker


def _is_same_identity(front: Event, event: Event) -> bool:
    if front.client_id and event.client_id:
        return is_same_client(front.client_id, event.client_id)
    # A refused request names an ARM ID at most: its last part is usually what the AzureIdentity is called, too.
    name = front.identity.rpartition("/")[2]
    return bool(name) and name == event.identity


def _is_first_use(trail: Trail, event: Event) -> bool:
    is_new = not any(step.station in RESOURCES for step in trail.steps)
    return is_new and _is_use(trail.head, trail.client_id, event)


def _is_use(token: Event, client_id: str, event: Event) -> bool:
    """Whether `event` uses what `token`, the answer of the station nearest to the asker, has just issued."""
    if token.station not in _ISSUERS or token.is_refused or token.asker != event.asker:
        return False
    is_soon = token.time - SLACK_SECONDS <= event.time <= token.time + USE_SECONDS
    return is_soon and is_same_client(client_id, event.client_id)


def _keys(event: Event) -> tuple[_Key, ...]:
    """Return under what an event's trail is looked for: who asked, and which daemon may have asked for it."""
    asker = ("asker", event.asker, "")
    if event.station == NMI and event.cached:  # nobody was asked for it: it must not be in the way of those that waited
        return (asker,)
    if event.station in (NMI, BROKER):
        return asker, ("daemon", event.place, host_of(event.resource))
    if event.station in (IMDS, ENTRA):
        return ("daemon", event.asker, host_of(event.resource)), asker
    return (asker,)
