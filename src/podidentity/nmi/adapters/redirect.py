"""Keeps pods' IMDS traffic away from IMDS and sends it to NMI, in the order that never leaves a gap.

Ip rules, guard, *then the caller listens*, then nat with the hold, connection tracking, and when the caller can answer,
the hold lifted. What stands is read back and repaired whenever the host's rules change. A planned stop leaves
everything and holds new connections back; only `uninstall` takes things away. Measured in
docs/decisions/fail-closed.md.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from podidentity.errors import HostError
from podidentity.linux import bridges, conntrack, datapath, egress, interception, nftables, routing
from podidentity.linux.commands import CommandError
from podidentity.linux.interception import Forbidden, Interception
from podidentity.linux.listening import is_listening
from podidentity.linux.notifications import watch_host
from podidentity.linux.upstream_chain import retire_upstream_chain

_log = logging.getLogger(__name__)

_PAUSE_SECONDS = 0.1  # between two checks: kube-proxy may rewrite its rules all the time
_RETRY_SECONDS = 1.0  # after a check that failed
_HOW_TO_ACCEPT = "docs/configure/closing-the-window.md says how to check and accept it"


@dataclass(frozen=True, slots=True)
class RedirectSettings:
    """Addresses are IPv4. `check_seconds` bounds the time between two checks without any change."""

    metadata_address: str
    metadata_port: int
    listen_address: str
    listen_port: int
    check_seconds: float = 60.0
    anti_spoof: bool = True
    accept_ebpf: bool = False
    """Whether signs of a datapath outside netfilter are no reason to say that the redirect does not stand."""

    accept_cards: bool = False
    """Whether a pod's own network card is no reason to say so either."""

    block_wireserver: bool = False
    """Whether the guard also drops what pods send to Azure's WireServer."""

    @property
    def forbidden(self) -> Forbidden:
        """Return where no pod's packet may go."""
        return Forbidden(self.metadata_address, self.block_wireserver)


class Redirect:
    """The interception on this host. `on_repair` is called with the differences that were repaired."""

    def __init__(self, settings: RedirectSettings, on_repair: Callable[[tuple[str, ...]], None]) -> None:
        self._settings = settings
        self._on_repair = on_repair
        self._differences: tuple[str, ...] = ("the redirect has not been put up yet",)
        self._bypasses: tuple[str, ...] = ()
        self._missing_families: set[str] = set()
        self._links_on_uplinks: tuple[str, ...] = ()
        self._cards: tuple[str, ...] = ()
        self._next_scan = -float("inf")

    @property
    def is_in_place(self) -> bool:
        """Whether guard, rules, redirect and listener were all there when last looked at."""
        return not self._differences

    def troubles(self) -> tuple[str, ...]:
        """Return why nobody should rely on it, one sentence each; nothing when all was well when last looked at."""
        on_uplinks = tuple(
            f"{name} hands its packets straight to the node's uplink, where this kernel cannot stop them on the way to "
            "IMDS: no netdev egress hook (Linux 5.16); detach it, or run its pods elsewhere"
            for name in self._links_on_uplinks
        )
        past_host = () if self._settings.accept_cards else self._cards_of_pods()
        return (*self._differences, *on_uplinks, *self._signs_of_ebpf(), *past_host)

    def _signs_of_ebpf(self) -> tuple[str, ...]:
        if not self._bypasses or self._settings.accept_ebpf:
            return ()
        signs = ", ".join(self._bypasses)
        message = f"eBPF may carry pods' packets past netfilter, where no redirect works; found: {signs}"
        return (f"{message}. {_HOW_TO_ACCEPT}",)

    def _cards_of_pods(self) -> tuple[str, ...]:
        return tuple(
            f"{name} is a network card of a pod's own, whose packets pass this host by, also those to IMDS. "
            f"{_HOW_TO_ACCEPT}"
            for name in self._cards
        )

    def warnings(self) -> tuple[str, ...]:
        """Return what this host cannot see and the operator has accepted, one sentence for each card of a pod."""
        return self._cards_of_pods() if self._settings.accept_cards else ()

    async def put_up_guard(self) -> bool:
        """Cut pods off from IMDS. First of all, before anything listens. Return whether the kernel could do all of it.

        Each part is put up whatever becomes of the others: the rules need no nft, and nft needs no rules. Raises
        `HostError`, the first one.
        """
        failures: list[HostError] = []
        for part in (self._ensure_rules, self._put_up_tables):
            try:
                await part()
            except HostError as error:
                failures.append(error)
        if failures:
            raise failures[0]
        return not self._missing_families

    async def _ensure_rules(self) -> None:
        await routing.ensure_rules(self._settings.metadata_address)

    async def _put_up_tables(self) -> None:
        """Guard bridges and the uplinks themselves, too, where the kernel can; few pods' packets go only there.

        In one transaction, because the kernel takes some 10 ms for each; one by one where that fails.
        """
        try:
            tables = (
                interception.guard(self._settings.forbidden),
                await self._bridge_guard(),
                await self._uplink_guard(),
            )
            await nftables.replace(*(table for table in tables if table.family not in self._missing_families))
        except HostError:
            await self._put_up_tables_one_by_one()

    async def _put_up_tables_one_by_one(self) -> None:
        await nftables.replace(interception.guard(self._settings.forbidden))
        await self._replace_if_able(self._bridge_guard, "pods that are bridged to the node's uplink can reach IMDS")
        await self._replace_if_able(self._uplink_guard, "pods on a macvlan of the node's uplink can reach IMDS")

    async def _bridge_guard(self) -> nftables.Table:
        return interception.bridge_guard(self._settings.forbidden)

    async def _uplink_guard(self) -> nftables.Table:
        uplinks = await routing.uplinks(self._settings.metadata_address)
        return await asyncio.to_thread(egress.uplink_guard, self._settings.forbidden, uplinks)

    async def _replace_if_able(self, make: Callable[[], Awaitable[nftables.Table]], without: str) -> None:
        """Load a table of a family that the kernel may lack; what is possible `without` it is logged once."""
        table = await make()
        if table.family in self._missing_families:
            return
        try:
            await nftables.replace(table)
        except CommandError as error:
            if table != await make():  # an interface went meanwhile, and its message brings the next look
                return
            self._missing_families.add(table.family)
            _log.warning("%s: %s", without, error)

    async def _differences_if_able(self, table: nftables.Table) -> tuple[str, ...]:
        return () if table.family in self._missing_families else await nftables.differences(table)

    async def send_pods_here(self) -> None:
        """Redirect pods to the listener, which must listen already; new connections still wait. Raises `HostError`."""
        current = await self._current()
        await nftables.replace(interception.redirect(current), interception.hold(current))
        await self._forget_connections(only_unredirected=False)

    async def let_in(self) -> None:
        """Let the connections come: the caller can answer. Raises `HostError`."""
        await nftables.remove(interception.HOLD)
        if await retire_upstream_chain():
            _log.info("aad-pod-identity's iptables chain was found and removed")
        await self._read_back()

    async def take_over(self) -> None:
        """Go on with what another NMI put up: connections that were redirected stay. Raises `HostError`.

        The listener must listen already, and the caller can answer.
        """
        redirect = interception.redirect(await self._current())
        if await nftables.differences(redirect):
            await nftables.replace(redirect)
        await self._forget_connections(only_unredirected=True)
        await self.let_in()

    async def hold_new_connections(self) -> None:
        """Let new clients retransmit until the next process listens, instead of being refused. Raises `HostError`."""
        await nftables.replace(interception.hold(await self._current()))

    async def differences(self) -> tuple[str, ...]:
        """Read everything back and return what is not as it should be, one sentence each. Raises `HostError`."""
        current = await self._current()
        forbidden = self._settings.forbidden
        missing = await routing.missing_rules(current.metadata_address)
        return (
            *await nftables.differences(interception.guard(forbidden)),
            *(f"ip rule `{rule}` is missing" for rule in missing),
            *await nftables.differences(interception.redirect(current)),
            *await self._differences_if_able(await self._bridge_guard()),
            *await self._differences_if_able(await self._uplink_guard()),
            *_listener_differences(current),
        )

    async def uninstall(self, *, keep_guard: bool = False) -> None:
        """Take everything away: pods reach the real IMDS afterwards. Raises `HostError`.

        With `keep_guard` only the redirect goes, and pods stay cut off.
        """
        self._differences = ("the interception was removed",)
        if keep_guard:
            await self.put_up_guard()
            await _remove_if_present(interception.PORTS)
            await nftables.remove(interception.HOLD, interception.REDIRECT)
        else:
            await _remove_if_present(interception.PORTS, interception.BRIDGE_GUARD, interception.UPLINK_GUARD)
            await nftables.remove(interception.HOLD, interception.REDIRECT, interception.GUARD)
            await routing.remove_rules(self._settings.metadata_address)
        await self._forget_connections(only_unredirected=False)

    async def run(self) -> None:
        """Watch this host's rules and repair them, until cancelled."""
        change = asyncio.Event()
        change.set()  # whatever happened before the watch began was not reported
        async with watch_host(change, links=interception.UPLINK_GUARD[0] not in self._missing_families):
            pause = 0.0
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause or self._settings.check_seconds):
                        await change.wait()
                change.clear()
                pause = await self._check()
                await asyncio.sleep(_PAUSE_SECONDS)

    async def _check(self) -> float:
        """Repair what is wrong. Return how long to wait at most for the next check; 0 means the usual time."""
        try:
            differences = await self._read_back()
            if differences:
                await self._repair()
                if repaired := tuple(difference for difference in differences if difference not in self._differences):
                    self._on_repair(repaired)
        except HostError as error:
            self._differences = (f"the redirect cannot be checked: {error}",)
            _log.error("the redirect cannot be checked, trying again in %g s: %s", _RETRY_SECONDS, error)
            return _RETRY_SECONDS
        return 0.0

    async def _repair(self) -> None:
        await self.put_up_guard()
        await nftables.replace(interception.redirect(await self._current()))
        await self._forget_connections(only_unredirected=True)
        await self._read_back()

    async def _read_back(self) -> tuple[str, ...]:
        self._bypasses = await asyncio.to_thread(datapath.bypasses, await self._uplinks())
        self._links_on_uplinks = await self._find_links_on_uplinks()
        await self._scan_for_cards()
        self._differences = await self.differences()
        return self._differences

    async def _scan_for_cards(self) -> None:
        """Look into every pod's namespace, which takes a while with many pods: not at each change."""
        now = asyncio.get_running_loop().time()
        if now < self._next_scan:
            return
        self._next_scan = now + self._settings.check_seconds
        uplinks = await routing.uplinks(self._settings.metadata_address)
        self._cards = (
            *await asyncio.to_thread(egress.cards_of_pods, uplinks),
            *await asyncio.to_thread(egress.virtual_functions_of_others, uplinks),
        )

    async def _find_links_on_uplinks(self) -> tuple[str, ...]:
        """Return what hangs on an uplink and would reach IMDS by it; nothing where the uplinks are guarded."""
        if interception.UPLINK_GUARD[0] not in self._missing_families:
            return ()
        uplinks = await routing.uplinks(self._settings.metadata_address)
        return await asyncio.to_thread(egress.links_on_uplinks, uplinks)

    async def _forget_connections(self, *, only_unredirected: bool) -> None:
        settings = self._settings
        await conntrack.delete_connections(
            settings.metadata_address, settings.metadata_port, only_unredirected=only_unredirected
        )

    async def _uplinks(self) -> tuple[str, ...]:
        """Return the uplinks, by which no pod's packets come in; not one whose own bridge pods may hang on."""
        uplinks = await routing.uplinks(self._settings.metadata_address)
        pod_bridges = await asyncio.to_thread(bridges.with_veths)
        return tuple(name for name in uplinks if name not in pod_bridges)

    async def _current(self) -> Interception:
        """Return what must be in place now. The uplinks are looked up each time: network interfaces come and go."""
        settings = self._settings
        return Interception(
            metadata_address=settings.metadata_address,
            metadata_port=settings.metadata_port,
            listen_address=settings.listen_address,
            listen_port=settings.listen_port,
            uplinks=await self._uplinks(),
            anti_spoof=settings.anti_spoof,
        )


async def _remove_if_present(*tables: tuple[str, str]) -> None:
    """Remove the tables that exist: a kernel without a table's family refuses to remove what it cannot have."""
    for table in tables:
        with contextlib.suppress(CommandError):  # such a kernel may refuse to list, too
            if await nftables.list_table(*table) is not None:
                await nftables.remove(table)


def _listener_differences(current: Interception) -> tuple[str, ...]:
    """Return a sentence when nobody listens where pods are sent."""
    if is_listening(current.listen_address, current.listen_port):
        return ()
    return (f"nobody listens at {current.listen_address}:{current.listen_port}",)
