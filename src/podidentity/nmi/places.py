"""How many connections each client may hold, and how many answers it gets in one turn of the event loop.

Both are shares: whoever asks for everything holds up itself, and nobody else.
"""

import asyncio
from collections import Counter, deque
from typing import NamedTuple, Protocol

ANSWERS_PER_TURN = 32
"""For a client that is alone: as many connections as SDKs' pools open."""
ANSWERS_BESIDE_OTHERS = 8
"""For each client as soon as there are several: about half a millisecond of the event loop on a slow machine, since an
answer is also a packet that the kernel delivers meanwhile."""
READING_COST = 2
"""What an answer takes of a client's share when its head had to be searched and read: it takes about that much longer
than one whose bytes were known."""
PUT_OFF_PER_TURN = 2
"""Of those, how many that were put off before: only who sends ahead or uses more than its share has any, and whoever
connects waits for some turns."""
_BUSY_TURN = 256  # answers of one turn, after which each client gets few
_ANSWERS_OF_A_BUSY_TURN = 4
_ALONE_SECONDS = 2
"""For how many seconds, the one under way counted, nobody else has asked when a client is alone."""


class Limits(NamedTuple):
    """How many connections there may be. When all are taken, the client with most gives one up for one with fewer."""

    per_address: int = 256
    in_all: int = 4096


class Member(Protocol):
    """A connection, as its place sees it."""

    client: str
    """Whose it is: the address, or the whole node."""

    half_closed: bool
    """Whether the client has said that it sends no more, or is gone: the two look alike."""

    @property
    def is_standing(self) -> bool:
        """Whether it is still there to be given up."""

    def worth(self) -> tuple[int, int]:
        """Return what orders connections by what their client would miss; the least goes first."""

    def give_up(self) -> None:
        """Make room for another client."""

    def answer_next(self) -> None:
        """Answer one request that was put off."""


class Places:
    """The connections of one listening socket, or of several that share their limits."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._members: set[Member] = set()
        self._per_client: Counter[str] = Counter()

    def make_room(self, client: str) -> bool:
        """Return whether one more connection of `client` may come in; ends another where that is fair.

        A few pods could otherwise take every connection of the node by keeping them open.
        """
        count = self._per_client[client]
        if count >= self.limits.per_address:
            return self._give_up_half_closed(client)
        if len(self._members) < self.limits.in_all:
            return True
        greediest, largest = self._per_client.most_common(1)[0]
        return largest > count + 1 and self._give_up(self._standing_of(greediest))

    def add(self, member: Member) -> None:
        """Count a connection."""
        self._members.add(member)
        self._per_client[member.client] += 1

    def remove(self, member: Member) -> None:
        """Stop counting a connection."""
        self._members.remove(member)
        self._per_client[member.client] -= 1
        if not self._per_client[member.client]:
            del self._per_client[member.client]

    def _give_up_half_closed(self, client: str) -> bool:
        """End what the client has probably left: an SDK that gives up after a second asks again on a new connection."""
        return self._give_up([member for member in self._standing_of(client) if member.half_closed])

    def _standing_of(self, client: str) -> list[Member]:
        return [member for member in self._members if member.client == client and member.is_standing]

    @staticmethod
    def _give_up(members: list[Member]) -> bool:
        if members:
            min(members, key=lambda member: member.worth()).give_up()
        return bool(members)


class NodePlaces(Places):
    """Places for programs of the node, which are one client whatever address they come from.

    When all are taken, the one that idles for longest goes: a newcomer may be the one that matters.
    """

    def make_room(self, client: str) -> bool:
        """Return whether one more connection may come in; ends the least worth when all are taken."""
        return len(self._members) < self.limits.in_all or self._give_up(self._standing_of(client))


class TurnShares:
    """How many answers each client gets before the event loop looks at sockets again.

    libuv accepts one connection in a turn, so that a turn's length is every newcomer's wait. What is over a share is
    queued, and answered in the turns that follow, each client after the other.
    """

    def __init__(self) -> None:
        self._answers: dict[str, int] = {}  # a Counter would call Python code for each that is new
        self._total = 0
        self._queues: dict[str, deque[Member]] = {}
        self._scheduled = False
        self._share = ANSWERS_PER_TURN
        self._second = 0
        self._last_client = ""
        self._last_other = -_ALONE_SECONDS  # the second in which somebody else than the client before had an answer

    def begin_second(self) -> None:
        """Note that a second has passed. To be called once a second."""
        self._second += 1

    def take(self, client: str, cost: int = 1) -> bool:
        """Take an answer of this turn for `client`; return whether anything of its share was left."""
        count = self._answers.get(client, 0)
        if count >= (self._share if self._total < _BUSY_TURN else _ANSWERS_OF_A_BUSY_TURN):
            return False
        self._schedule()
        self._answers[client] = count + cost
        self._total += cost
        return True

    def enqueue(self, member: Member) -> None:
        """Have `member` answer its next request in the next turn."""
        self._queues.setdefault(member.client, deque()).append(member)
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._begin_turn)

    def _begin_turn(self) -> None:
        self._scheduled = False
        self._share = self._next_share()
        self._answers.clear()
        self._total = 0
        for client, queue in tuple(self._queues.items()):
            for _ in range(min(len(queue), max(1, min(PUT_OFF_PER_TURN, _BUSY_TURN // len(self._queues))))):
                queue.popleft().answer_next()
            if not queue:
                del self._queues[client]
        if self._queues:
            self._schedule()

    def _next_share(self) -> int:
        """Return how many answers each client gets in the turn that begins, by who had any in those before."""
        answers = self._answers
        if len(answers) > 1 or (answers and self._last_client not in answers):
            self._last_client, self._last_other = next(iter(answers)), self._second
        return ANSWERS_BESIDE_OTHERS if self._second - self._last_other < _ALONE_SECONDS else ANSWERS_PER_TURN
