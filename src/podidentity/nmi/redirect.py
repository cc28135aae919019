"""Keeps pods' IMDS traffic away from IMDS and sends it to NMI, in the order that never leaves a gap.

Guard, ip rules, *then the caller listens*, then nat with the hold, connection tracking, and when the caller can answer,
the hold lifted. What stands is read back and repaired whenever the host's rules change. A planned stop leaves
everything and holds new connections back; only `uninstall` takes things away. Constructed by `daemon` (and by the CLI
for `--uninstall`); measured in docs/decisions/fail-closed.md.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass

from podidentity.errors import HostError
from podidentity.linux import bridges, conntrack, datapath, interception, nftables, routing
from podidentity.linux.commands import CommandError
from podidentity.linux.interception import Interception
from podidentity.linux.listening import is_listening
from podidentity.linux.notifications import watch_host
from podidentity.linux.upstream_chain import retire_upstream_chain

_log = logging.getLogger(__name__)

_PAUSE_SECONDS = 0.1  # between two checks: kube-proxy may rewrite its rules all the time
_RETRY_SECONDS = 1.0  # after a check that failed


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


class Redirect:
    """The interception on this host. `on_repair` is called with what was found wrong each time it is put right."""

    def __init__(self, settings: RedirectSettings, on_repair: Callable[[tuple[str, ...]], None]) -> None:
        self._settings = settings
        self._on_repair = on_repair
        self._wrong: tuple[str, ...] = ("the redirect has not been put up yet",)
        self._bypasses: tuple[str, ...] = ()
        self._bridges = True

    @property
    def stands(self) -> bool:
        """Whether guard, rules, redirect and listener were all there when last looked at."""
        return not self._wrong

    def troubles(self) -> tuple[str, ...]:
        """Say why nobody should rely on it, one sentence each; nothing when all was well when last looked at."""
        if not self._bypasses or self._settings.accept_ebpf:
            return self._wrong
        found = ", ".join(self._bypasses)
        told = f"eBPF may carry pods' packets past netfilter, where no redirect works; found: {found}"
        return (*self._wrong, f"{told}. docs/configure/closing-the-window.md says how to check and accept it")

    async def put_up_guard(self) -> None:
        """Cut pods off from IMDS. First of all, before anything listens. Raises `HostError`."""
        what = await self._now()
        await nftables.replace(interception.guard(what))
        await routing.ensure_rules(self._settings.metadata_address)
        await self._guard_bridges(what)

    async def _guard_bridges(self, what: Interception) -> None:
        """Guard bridges too, where the kernel can; without, only pods bridged straight to the uplink are concerned."""
        if not self._bridges:
            return
        try:
            await nftables.replace(interception.bridge_guard(what))
        except HostError as error:
            self._bridges = False
            _log.warning("pods that are bridged to the node's uplink can reach IMDS: %s", error)

    async def send_pods_here(self) -> None:
        """Redirect pods to the listener, which must listen already; new connections still wait. Raises `HostError`."""
        what = await self._now()
        await nftables.replace(interception.redirect(what), interception.hold(what))
        await self._forget_connections(only_unredirected=False)

    async def let_in(self) -> None:
        """Let the connections come: the caller can answer. Raises `HostError`."""
        await nftables.remove(interception.HOLD)
        if await retire_upstream_chain():
            _log.info("aad-pod-identity's iptables chain was found and removed")
        await self._read_back()

    async def hold_new_connections(self) -> None:
        """Let new clients retransmit until the next process listens, instead of being refused. Raises `HostError`."""
        await nftables.replace(interception.hold(await self._now()))

    async def differences(self) -> tuple[str, ...]:
        """Read everything back; what is not as it should be, one sentence each. Raises `HostError`."""
        what = await self._now()
        missing = await routing.missing_rules(what.metadata_address)
        return (
            *await nftables.differences(interception.guard(what)),
            *(f"ip rule `{rule}` is missing" for rule in missing),
            *await nftables.differences(interception.redirect(what)),
            *(await nftables.differences(interception.bridge_guard(what)) if self._bridges else ()),
            *(() if is_listening(what.listen_address, what.listen_port) else (f"nobody listens at {_place(what)}",)),
        )

    async def uninstall(self) -> None:
        """Take everything away: pods reach the real IMDS afterwards. Raises `HostError`."""
        self._wrong = ("the interception was removed",)
        await _remove_bridge_tables()
        await nftables.remove(interception.HOLD, interception.REDIRECT, interception.GUARD)
        await routing.remove_rules(self._settings.metadata_address)
        await self._forget_connections(only_unredirected=False)

    async def run(self) -> None:
        """Watch this host's rules and repair them, until cancelled."""
        changed = asyncio.Event()
        changed.set()  # what happened before the watch began was not heard
        async with watch_host(changed):
            pause = 0.0
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause or self._settings.check_seconds):
                        await changed.wait()
                changed.clear()
                pause = await self._check()
                await asyncio.sleep(_PAUSE_SECONDS)

    async def _check(self) -> float:
        """Repair what is wrong. How long to wait at most for the next check; 0 means the usual time."""
        try:
            wrong = await self._read_back()
            if wrong:
                await self._repair()
                if right := tuple(sentence for sentence in wrong if sentence not in self._wrong):
                    self._on_repair(right)
        except HostError as error:
            self._wrong = (f"the redirect cannot be checked: {error}",)
            _log.error("the redirect cannot be checked, trying again in %g s: %s", _RETRY_SECONDS, error)
            return _RETRY_SECONDS
        return 0.0

    async def _repair(self) -> None:
        await self.put_up_guard()
        await nftables.replace(interception.redirect(await self._now()))
        await self._forget_connections(only_unredirected=True)
        await self._read_back()

    async def _read_back(self) -> tuple[str, ...]:
        self._bypasses = await asyncio.to_thread(datapath.bypasses, await self._uplinks())
        self._wrong = await self.differences()
        return self._wrong

    async def _forget_connections(self, *, only_unredirected: bool) -> None:
        settings = self._settings
        await conntrack.delete_connections(
            settings.metadata_address, settings.metadata_port, only_unredirected=only_unredirected
        )

    async def _uplinks(self) -> tuple[str, ...]:
        """Name where no pod's packets come in. Pods may hang on the uplink's own bridge: that one does not count."""
        found = await routing.uplinks(self._settings.metadata_address)
        shared = await asyncio.to_thread(bridges.with_veths)
        return tuple(name for name in found if name not in shared)

    async def _now(self) -> Interception:
        """Look the uplinks up each time: network interfaces come and go."""
        settings = self._settings
        return Interception(
            metadata_address=settings.metadata_address,
            metadata_port=settings.metadata_port,
            listen_address=settings.listen_address,
            listen_port=settings.listen_port,
            uplinks=await self._uplinks(),
            anti_spoof=settings.anti_spoof,
        )


async def _remove_bridge_tables() -> None:
    """Only what is there: a kernel without the bridge family refuses to remove what it cannot have."""
    for table in (interception.PORTS, interception.BRIDGE_GUARD):
        with contextlib.suppress(CommandError):  # such a kernel may refuse to list, too
            if await nftables.listed(*table) is not None:
                await nftables.remove(table)


def _place(what: Interception) -> str:
    return f"{what.listen_address}:{what.listen_port}"
