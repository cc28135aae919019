"""Anti-spoofing on bridges: which table is loaded, what NMI is told, and when a pod's new sandbox is believed.

What the table does to packets is tested with the kernel: tests/system/redirect/test_spoofing.py and test_reuse.py.
"""

import asyncio
import ipaddress
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

import make
from clocks import JumpingClock
from daemons.mic.jumping import JumpingLoop
from podidentity.core.model.snapshot import Pod
from podidentity.core.tokens.bridge_ports import Port
from podidentity.errors import HostError, UnreachableError
from podidentity.linux import bridges, interception, nftables
from podidentity.linux.bridges import Bridges
from podidentity.nmi.adapters import anti_spoof
from podidentity.nmi.adapters.anti_spoof import AntiSpoof, AntiSpoofSettings
from podidentity.nmi.ports import MOVED_SECONDS

METADATA = "169.254.169.254"
WEB = replace(make.pod("web"), ips=("10.0.0.1",))


def port(number: int, *addresses: str) -> Port:
    """Build a veth."""
    return Port(number, f"veth{number}", frozenset(addresses), f"02:00:00:00:00:0{number}")


class Host:
    """A host whose ports a test sets, an API server, and what NMI was told. Only the kernel is not real.

    `listing` is the kernel's own table as nft lists it, None without one; `tables` are those that were loaded;
    `looked_at` has the event loop's time of each look.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, enabled: bool = True) -> None:
        self.clock = JumpingClock()
        self.ports = [port(1, "10.0.0.1")]
        self.routes: dict[str, int] = {}
        self.trouble: HostError | None = None
        self.looked_at: list[float] = []
        self.listing: list[dict[str, Any]] | None = None
        self.differences: tuple[str, ...] = ()
        self.tables: list[nftables.Table] = []
        self.removals = 0
        self.expected: set[tuple[str, int]] = set()
        self.reset_interfaces: list[int] = []
        self.reset_pods: list[str] = []
        self.pods: Collection[Pod] | None = (WEB,)
        self.api: Collection[Pod] | Exception | None = None
        self.looks = 0
        self.release_calls: list[str] = []
        self.uids_at_ports: frozenset[str] = frozenset()
        self.reset_interface = self.reset_interfaces.append
        self.reset_pod = self.reset_pods.append
        self.anti_spoof = AntiSpoof(
            AntiSpoofSettings(METADATA, enabled=enabled, check_seconds=60),
            lambda: self.pods,
            self._look,
            self,
            self.clock,
        )
        monkeypatch.setattr(bridges, "look", self._look_at_host)
        monkeypatch.setattr(nftables, "replace", self._replace)
        monkeypatch.setattr(nftables, "remove", self._remove)
        monkeypatch.setattr(nftables, "list_table", self._constant(lambda: self.listing))
        monkeypatch.setattr(nftables, "differences", self._constant(lambda: self.differences))

    def expect(self, uid: str, interface: int) -> None:
        """Note the interface that is reported for a pod."""
        self.expected.add((uid, interface))

    def hold(self, uids: frozenset[str]) -> None:
        """Note the pods that are at a port of their own."""
        self.uids_at_ports = uids

    def release(self, uid: str) -> None:
        """Note the pod that is released from its old interface."""
        self.release_calls.append(uid)

    async def proven_after(self, seconds: float) -> int:
        """Look again after so many seconds; return how many pods are at a port of their own."""
        self.clock.jump(seconds)
        await self.anti_spoof.keep()
        return self.anti_spoof.proven_pods

    def _look_at_host(self, _interfaces: frozenset[int]) -> Bridges:
        if self.trouble is not None:
            raise self.trouble
        network = ipaddress.IPv4Network("10.0.0.0/24")
        interfaces = frozenset(port.interface for port in self.ports)
        return Bridges((network,), tuple(self.ports), interfaces, self.routes)

    async def _replace(self, table: nftables.Table) -> None:
        self.tables.append(table)

    async def _remove(self, key: object) -> None:
        assert key == interception.PORTS
        self.removals += 1

    async def _look(self) -> Collection[Pod]:
        self.looks += 1
        if isinstance(self.api, Exception):
            raise self.api
        return (self.pods or ()) if self.api is None else self.api

    @staticmethod
    def _constant(answer: Callable[[], object]) -> Callable[..., Awaitable[object]]:
        async def act(*_: object) -> object:
            return answer()

        return act


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    """A host with one pod at its port."""
    return Host(monkeypatch)


async def test_it_is_believed_after_a_minute_and_a_look(host: Host) -> None:
    """A pod with a new port is believed after a minute, once the API server says that the pod still runs."""
    assert await host.proven_after(0) == 1
    host.ports = [port(2, "10.0.0.1")]
    assert await host.proven_after(1) == 0
    assert await host.proven_after(MOVED_SECONDS - 1) == 0
    assert host.looks == 0
    assert await host.proven_after(1) == 1
    assert (host.looks, host.release_calls) == (1, [WEB.uid])
    assert await host.proven_after(1000) == 1
    assert host.looks == 1


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
async def test_it_is_not_when_the_api_server_does_not_say_so(host: Host, api: object, looks: int) -> None:
    """A new port is not believed while the API server does not confirm the pod; it is asked every ten seconds."""
    await host.proven_after(0)
    host.api = api  # type: ignore[assignment]
    host.ports = [port(2, "10.0.0.1")]
    await host.proven_after(0)
    assert [await host.proven_after(seconds) for seconds in (MOVED_SECONDS, 1, 1, 10)] == [0] * 4
    assert (host.looks, host.release_calls) == (looks, [])


async def test_it_is_not_while_claims_change(host: Host) -> None:
    """A port that claims the address for less than a minute, or beside another port, is never taken for the pod's."""
    await host.proven_after(0)
    liar = replace(make.pod("liar"), ips=("10.0.0.2",))
    for ports in ([port(2, "10.0.0.1")], [port(2, "10.0.0.1"), port(3, "10.0.0.1")], [port(3, "10.0.0.1")]):
        host.ports = ports
        assert await host.proven_after(MOVED_SECONDS - 1) == 0
    host.pods = (WEB, liar)
    host.ports = [port(3, "10.0.0.1", "10.0.0.2")]
    await host.proven_after(1)
    assert await host.proven_after(MOVED_SECONDS) == 1
    assert (host.looks, host.release_calls) == (0, [])
    assert [warning for warning in host.anti_spoof.warnings() if "default/web" in warning]


async def test_a_table_that_cannot_be_loaded_holds_no_pod(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A port of its own proves who a pod is only while the table that keeps others from its address is loaded."""

    async def fail(*_: object) -> object:
        raise HostError("nft: no such table")

    await host.proven_after(0)
    assert host.uids_at_ports == {WEB.uid}
    with monkeypatch.context() as patch:
        patch.setattr(nftables, "differences", fail)
        await host.proven_after(1)
    assert host.uids_at_ports == frozenset()
    await host.proven_after(1)
    assert host.uids_at_ports == {WEB.uid}


def listed(*elements: tuple[str, str]) -> list[dict[str, Any]]:
    """Return what nft lists of a table with these pairs of port and address."""
    name = {"family": interception.PORTS[0], "table": interception.PORTS[1], "name": interception.ADDRESSES}
    concatenated = [{"concat": list(element)} for element in elements]
    return [{"chain": {"name": "prerouting"}}, {"set": {**name, "type": ["ifname", "ipv4_addr"], "elem": concatenated}}]


@pytest.mark.parametrize("enabled", [True, False])
async def test_bridges_are_closed_until_it_is_known_who_is_there(
    *, enabled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until the pods are known no port may ask, unless a predecessor's table is loaded; --anti-spoof=off loads none."""
    host = Host(monkeypatch, enabled=enabled)
    host.pods, host.listing = None, listed()
    await host.anti_spoof.keep()
    assert host.tables == []
    host.listing = None
    await host.anti_spoof.keep()
    assert host.tables == ([interception.ports(METADATA, (), ())] if enabled else [])
    assert host.anti_spoof.warnings() == ()


async def test_the_table_is_loaded_when_it_changes_or_somebody_changed_it(host: Host) -> None:
    """Otherwise the table is not loaded again, because packets wait while the kernel loads it."""
    for _ in range(3):
        await host.proven_after(1)
    assert len(host.tables) == 1
    other = replace(make.pod("other"), ips=("10.0.0.2",))
    host.pods, host.ports = (WEB, other), [*host.ports, port(2, "10.0.0.2")]
    assert await host.proven_after(1) == 2
    assert len(host.tables) == 2
    host.differences = ("a rule is missing",)
    await host.proven_after(1)
    assert host.tables[2] == host.tables[1]


async def test_what_is_gone_takes_its_connections_along(host: Host) -> None:
    """Connections end with their interface or pod, so that an answer under way does not reach the next pod."""
    other = replace(make.pod("other"), ips=("10.0.0.2",))
    host.pods, host.ports = (WEB, other), [*host.ports, port(2, "10.0.0.2")]
    await host.proven_after(1)
    assert (host.reset_interfaces, host.reset_pods) == ([], [])
    host.ports = host.ports[1:]
    await host.proven_after(1)
    assert (host.reset_interfaces, host.reset_pods) == ([1], [WEB.uid])
    await host.proven_after(1)
    assert (host.reset_interfaces, host.reset_pods) == ([1], [WEB.uid])


async def test_a_pod_with_a_route_of_its_own_comes_in_by_that_alone(host: Host) -> None:
    """A route proves a pod without a bridge port; a pod whose addresses have different routes is not bound to one."""
    assert host.anti_spoof.proven_pods == 0
    routed = replace(make.pod("routed"), ips=("10.1.0.5", "fd00::5"))
    torn = replace(make.pod("torn"), ips=("10.1.0.6", "10.1.0.7"))
    host.pods, host.routes = (WEB, routed, torn), {"10.1.0.5": 7, "10.1.0.6": 8, "10.1.0.7": 9}
    assert await host.proven_after(0) == 2
    assert host.expected == {(routed.uid, 7)}
    assert host.anti_spoof.unproven_pods == 0


async def test_what_cannot_be_looked_at_is_told_and_proves_nobody_new(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    """While the kernel's links cannot be read, no further pod is proven; one warning, logged once, gives the reason."""
    host.trouble = HostError("netlink: not permitted")
    for _ in range(2):
        assert await host.proven_after(0) == 0
        (warning,) = host.anti_spoof.warnings()
        assert warning == "1 pods on bridges can take each other's addresses: netlink: not permitted"
        assert caplog.text.count(warning) == 1
    host.trouble = None
    await host.anti_spoof.keep()
    assert host.anti_spoof.warnings() == ()


async def test_off_takes_a_predecessors_table_away_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """With --anti-spoof=off a predecessor's table is removed, and a warning names the flag."""
    host = Host(monkeypatch, enabled=False)
    host.pods = (WEB, replace(make.pod("routed"), ips=("10.1.0.5",)))
    await host.anti_spoof.keep()
    assert (host.removals, host.tables) == (0, [])
    host.listing = listed()
    await host.anti_spoof.keep()
    assert (host.removals, host.tables) == (1, [])
    assert host.anti_spoof.unproven_pods == 1
    assert "--anti-spoof=off" in host.anti_spoof.warnings()[0]


@pytest.mark.parametrize(
    ("elements", "proven"),
    [
        ((("veth1", "10.0.0.1"), ("veth1", "10.0.0.8")), 1),
        ((("veth1", "10.0.0.8"), ("veth1", "10.0.0.1")), 1),
        ((("veth1", "10.0.0.8"),), 0),
        ((("veth2", "10.0.0.1"),), 1),
        ((), 1),
    ],
    ids=["had-it", "had-both", "took-it-since", "another-port", "nothing-known"],
)
async def test_an_address_that_a_port_did_not_have_under_the_last_nmi_is_not_believed(
    host: Host, elements: tuple[tuple[str, str], ...], proven: int
) -> None:
    """A port that the last NMI's table has without this address may have taken it since, and is not believed."""
    host.listing = listed(*elements)
    assert await host.proven_after(0) == proven
    assert bool(host.anti_spoof.warnings()) == (not proven)


def test_it_looks_when_something_changed_and_often_while_a_pod_has_no_port(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A burst of changes costs one look, a pod without a port one each second; otherwise NMI looks once a minute."""
    watched: list[bool] = []

    @asynccontextmanager
    async def watch(_: asyncio.Event, *, links: bool) -> AsyncIterator[None]:
        watched.append(links)
        yield

    async def in_this_thread(look: Callable[..., Bridges], *arguments: object) -> Bridges:
        host.looked_at.append(asyncio.get_running_loop().time())
        return look(*arguments)

    async def until(moment: float) -> list[float]:
        host.looked_at.clear()
        await asyncio.sleep(moment - asyncio.get_running_loop().time())
        return [round(moment) for moment in host.looked_at]

    async def test() -> None:
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(host.anti_spoof.run())
            assert await until(50) == [0]
            for _ in range(3):
                host.anti_spoof.look_again()
            assert await until(100) == [50]
            host.ports = []
            assert await until(111) == [110]
            host.ports = [port(2, "10.0.0.1")]
            assert await until(114.5) == [111, 112, 113, 114]
            task.cancel()
        assert watched == [True]

    monkeypatch.setattr(anti_spoof, "watch_host", watch)
    monkeypatch.setattr(asyncio, "to_thread", in_this_thread)
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        runner.run(test())
