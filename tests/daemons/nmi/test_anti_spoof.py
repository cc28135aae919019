"""A pod of a bridge whose sandbox was made anew, under the same address: when its new port is believed."""

import asyncio
import ipaddress
from collections.abc import Awaitable, Callable, Collection
from dataclasses import replace

import pytest

import make
from daemons.nmi.harness import JumpingClock
from podidentity.core.bridges import Port
from podidentity.core.cluster import Pod
from podidentity.errors import UnreachableError
from podidentity.linux import bridges, nftables
from podidentity.linux.bridges import Bridges
from podidentity.nmi.anti_spoof import AntiSpoof, AntiSpoofSettings
from podidentity.nmi.ports import MOVED_SECONDS

WEB = replace(make.pod("web"), ips=("10.0.0.1",))


def port(number: int, *addresses: str) -> Port:
    """Build a veth."""
    return Port(number, f"veth{number}", frozenset(addresses), f"02:00:00:00:00:0{number}")


class Host:
    """A host whose ports a test sets, an API server, and what NMI was told. Only the kernel is not real."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = JumpingClock()
        self.ports = [port(1, "10.0.0.1")]
        self.pods: Collection[Pod] = (WEB,)
        self.api: Collection[Pod] | Exception | None = None
        self.looks = 0
        self.told: list[str] = []
        self.expect = self.interface_gone = self.unplugged = lambda *_: None
        self.at = AntiSpoof(
            AntiSpoofSettings("169.254.169.254", enabled=True, check_seconds=60),
            lambda: self.pods,
            self._look,
            self,
            self.clock,
        )
        monkeypatch.setattr(bridges, "look", self._seen)
        for name, answer in {"replace": None, "listed": None, "differences": ()}.items():
            monkeypatch.setattr(nftables, name, self._nothing(answer))

    def replugged(self, uid: str) -> None:
        """Note it."""
        self.told.append(uid)

    async def after(self, seconds: float) -> int:
        """Look again after so long: how many pods are at a port of theirs."""
        self.clock.pass_time(seconds)
        await self.at.keep()
        return self.at.proven

    def _seen(self, _known: frozenset[int]) -> Bridges:
        network = ipaddress.IPv4Network("10.0.0.0/24")
        return Bridges((network,), tuple(self.ports), frozenset(one.interface for one in self.ports))

    async def _look(self) -> Collection[Pod]:
        self.looks += 1
        if isinstance(self.api, Exception):
            raise self.api
        return self.pods if self.api is None else self.api

    @staticmethod
    def _nothing(answer: object) -> Callable[..., Awaitable[object]]:
        async def act(*_: object) -> object:
            return answer

        return act


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    """A host with one pod at its port."""
    return Host(monkeypatch)


def test_it_is_believed_after_a_minute_and_a_look(host: Host) -> None:
    """The old port is gone, a new one alone claims the address, and the API server says that the pod lives."""

    async def test() -> None:
        assert await host.after(0) == 1
        host.ports = [port(2, "10.0.0.1")]
        assert await host.after(1) == 0
        assert await host.after(MOVED_SECONDS - 1) == 0
        assert host.looks == 0
        assert await host.after(1) == 1
        assert (host.looks, host.told) == (1, [WEB.uid])
        assert await host.after(1000) == 1
        assert host.looks == 1

    asyncio.run(test())


@pytest.mark.parametrize(
    ("api", "looks"),
    [
        ((replace(WEB, ending=True),), 2),
        ((replace(WEB, phase="Succeeded"),), 2),
        ((replace(WEB, ips=("10.0.0.9",)),), 2),
        ((replace(WEB, uid="another"),), 2),
        ((), 2),
        (UnreachableError("no answer"), 2),
    ],
    ids=["ending", "ended", "elsewhere", "another", "nobody", "no-answer"],
)
def test_it_is_not_when_the_api_server_does_not_say_so(host: Host, api: object, looks: int) -> None:
    """The pod may be gone, and its address another's. The API server is asked every ten seconds, not every second."""

    async def test() -> None:
        await host.after(0)
        host.api = api  # type: ignore[assignment]
        host.ports = [port(2, "10.0.0.1")]
        await host.after(0)
        assert [await host.after(seconds) for seconds in (MOVED_SECONDS, 1, 1, 10)] == [0] * 4
        assert (host.looks, host.told) == (looks, [])

    asyncio.run(test())


def test_it_is_not_while_claims_change(host: Host) -> None:
    """A neighbour that puts the address on for a while, or two that claim it, are never the pod."""

    async def test() -> None:
        await host.after(0)
        liar = replace(make.pod("liar"), ips=("10.0.0.2",))
        for ports in ([port(2, "10.0.0.1")], [port(2, "10.0.0.1"), port(3, "10.0.0.1")], [port(3, "10.0.0.1")]):
            host.ports = ports
            assert await host.after(MOVED_SECONDS - 1) == 0
        host.pods = (WEB, liar)
        host.ports = [port(3, "10.0.0.1", "10.0.0.2")]
        await host.after(1)
        assert await host.after(MOVED_SECONDS) == 1
        assert (host.looks, host.told) == (0, [])
        assert [one for one in host.at.warnings() if "default/web" in one]

    asyncio.run(test())
