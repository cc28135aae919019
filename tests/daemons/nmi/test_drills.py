"""Faults one by one and all at once: whatever fails, no pod ever gets a token of an identity that is not its own."""

import asyncio
import random

import pytest

from daemons.nmi.drill import ASSIGNED_IDENTITIES, PODS, Drill, drilling, has, is_of
from daemons.nmi.imds import Reply

DAY = 86400


async def test_the_api_server_is_gone_for_minutes() -> None:
    """For two minutes without the API server pods are answered, then they get 503; changes count once it is back."""
    async with drilling() as drill:
        for number in (1, 2):
            assert is_of(f"id-{number}")(await drill.ask(number))
        await drill.reassure()
        drill.go_away()
        del drill.server.objects[f"{ASSIGNED_IDENTITIES}/pod-1-id-1"]
        await drill.pass_time(60)
        assert is_of("id-2")(await drill.ask_at_once(2))
        await drill.pass_time(120)
        assert [(await drill.ask(number)).status for number in (1, 2)] == [503, 503]
        drill.come_back()
        await drill.until_answered(2, is_of("id-2"), "the pod that kept its identity")
        await drill.until_answered(1, has(400), "the pod that lost its identity")


async def test_a_watch_is_silently_dead() -> None:
    """After two minutes without a sign of life on the watches pods get 503, until one arrives."""
    async with drilling() as drill:
        assert is_of("id-1")(await drill.ask(1))
        await drill.reassure()
        drill.clock.jump(100)
        assert is_of("id-1")(await drill.ask_at_once(1))
        drill.clock.jump(60)
        assert (await drill.ask(1)).status == 503
        drill.confirm()
        await drill.until_answered(1, is_of("id-1"), "signs of life")


async def test_a_dead_watch_and_an_address_that_moved() -> None:
    """A dead watch misses that an address is another pod's; its new way in makes NMI ask the API server."""
    async with drilling() as drill:
        drill.links["127.0.1.1"] = (7, b"old")
        assert is_of("id-1")(await drill.ask(1))
        objects = drill.server.objects
        moved = objects.pop(f"{PODS}/pod-2")
        del objects[f"{PODS}/pod-1"]
        moved["status"] = {"phase": "Running", "podIP": "127.0.1.1", "podIPs": [{"ip": "127.0.1.1"}]}
        drill.server.put(f"{PODS}/pod-2", moved)
        drill.links["127.0.1.1"] = (8, b"new")
        assert is_of("id-2")(await drill.ask(1))


async def test_a_version_that_is_too_old() -> None:
    """After 410 on every watch NMI lists all objects anew, and what changed meanwhile counts."""
    async with drilling() as drill:
        assert is_of("id-1")(await drill.ask(1))
        lists = drill.server.count("GET")
        open_before = drill.watches()
        del drill.server.objects[f"{ASSIGNED_IDENTITIES}/pod-1-id-1"]
        drill.server.watches.clear()
        drill.assign("pod-1", "id-9")
        for watch in open_before:
            watch.expire()
        await drill.until_answered(1, is_of("id-9"), "the new identity")
        assert drill.server.count("GET") >= lists + len(open_before)


async def test_two_pods_claim_one_address() -> None:
    """Two pods that claim one address get 503; when one of them goes, the other gets its own token."""
    async with drilling() as drill:
        assert is_of("id-1")(await drill.ask(1))
        drill.add_pod("pod-2", 1)
        await drill.until_answered(1, has(503), "two claim it")
        drill.remove(f"{PODS}/pod-1")
        await drill.until_answered(1, is_of("id-2"), "one is left")


async def test_imds_is_slow() -> None:
    """Pods that wait for a slow IMDS hold up no pod whose token is cached, and each gets its own token in the end."""
    async with drilling(pods=4) as drill:
        assert is_of("id-1")(await drill.ask(1))
        drill.imds.gate = asyncio.Event()
        waiting = [asyncio.ensure_future(drill.ask(number)) for number in (2, 3, 4) for _ in range(5)]
        await drill.until(lambda: drill.imds.at_once == 3, "three calls")
        for _ in range(20):
            assert is_of("id-1")(await drill.ask(1))
        assert not any(task.done() for task in waiting)
        drill.imds.gate.set()
        answers = [await task for task in waiting]
        assert all(is_of(f"id-{2 + index // 5}")(answer) for index, answer in enumerate(answers))
        assert len(drill.imds.requests) == 4


STORM_REPLIES = (
    Reply(500),
    Reply(None),
    Reply(429),
    Reply(429, headers="Retry-After: 3\r\n"),
    Reply(410),
    Reply(404),
    Reply(200, b"garbage"),
    Reply(200, b"{}"),
    Reply(200, b'{"access_token":1,"expires_on":"x"}'),
    Reply(503, b"<html>"),
)


class Storm:
    """Breaks or mends one thing after the other at random."""

    def __init__(self, drill: Drill, chance: random.Random) -> None:
        self._drill = drill
        self._chance = chance

    def strike(self) -> None:
        """Break or mend one more thing."""
        self._drill.imds.script.extend(self._chance.sample(STORM_REPLIES, 2))
        self._chance.choice((self._watch, self._watch, self._server, self._wall_clock, self._silence))()

    def _watch(self) -> None:
        watches = self._drill.watches()
        if watches:
            watch = self._chance.choice(watches)
            self._chance.choice((watch.cut, watch.expire, lambda: watch.send_bytes(b"not JSON\n")))()

    def _server(self) -> None:
        self._drill.server.reachable = not self._drill.server.reachable

    def _wall_clock(self) -> None:
        self._drill.clock.set_wall(self._chance.choice((-1, 1)) * self._chance.uniform(1, 10 * DAY))

    def _silence(self) -> None:
        self._drill.clock.jump(self._chance.uniform(0, 90))


@pytest.mark.parametrize("seed", range(4))
async def test_everything_fails_at_once(seed: int) -> None:
    """While IMDS, watches, API server and clock fail at random no pod gets another's token; later all get their own."""
    chance = random.Random(seed)  # noqa: S311  # a storm that can be repeated

    async with drilling(pods=4) as drill:
        storm, answers = Storm(drill, chance), []
        for _ in range(20):
            for number in (1, 2, 3, 4):
                target = f"/metadata/identity/oauth2/token?resource=https://{chance.randint(0, 5)}.example"
                answers.append((number, await drill.ask(number, target)))
            storm.strike()
        assert {200} < {answer.status for _, answer in answers} <= {200, 403, 503}
        assert [entry for entry in answers if entry[1].status == 200 and not is_of(f"id-{entry[0]}")(entry[1])] == []
        drill.imds.script.clear()
        drill.come_back()
        for number in (1, 2, 3, 4):
            await drill.until_answered(number, is_of(f"id-{number}"), "all is well again")
