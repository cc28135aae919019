"""The host's side of the interception: in which order it comes, what is found, watched, refused and taken away."""

import asyncio
import contextlib
import functools
import os
import re
import shutil
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from podidentity.errors import HostError
from podidentity.linux import interception, nftables, routing
from podidentity.linux.notifications import watch_host
from podidentity.nmi.adapters import redirect as redirecting
from podidentity.nmi.adapters.redirect import Redirect, RedirectSettings
from podidentity.nmi.commands import uninstall as uninstalling
from podidentity.nmi.settings import Settings
from system.redirect.acting import PORT, SETTINGS, install, within
from system.redirect.network import IMDS, NODE, Namespace, Network
from system.redirect.node import Node
from system.redirect.programs import programs, run_in
from system.redirect.traffic import Server, fetch
from waiting import until

UPLINK = (
    "ip link add eth0 type veth peer name far0; ip link set eth0 up; ip link set far0 up\n"
    f"ip addr add {NODE}/24 dev eth0; ip route add default via 192.168.77.1"
)


FILTER = "tc qdisc add dev {0} clsact; tc filter add dev {0} ingress bpf bytecode '1,6 0 0 4294967295'"


@pytest.fixture
def host() -> Iterator[Namespace]:
    """A host with an uplink and nothing else."""
    with contextlib.closing(Namespace()) as made:
        made.run(UPLINK)
        yield made


@pytest.fixture
def nmi(host: Namespace) -> Iterator[Server]:
    """Something that listens in NMI's place."""
    server = Server(host, NODE, PORT, "nmi")
    yield server
    server.close()


def test_every_uplink_is_found(host: Namespace) -> None:
    """Default routes with several ways, and every other route that covers IMDS's address; pods' routes are none."""
    host.run(
        "for number in 1 2 3; do ip link add eth$number type veth peer name far$number; ip link set eth$number up\n"
        "ip link set far$number up; ip addr add 10.$number.0.1/24 dev eth$number; done\n"
        "ip route replace default nexthop via 192.168.77.1 dev eth0 nexthop via 10.1.0.2 dev eth1\n"
        "ip route add 169.254.0.0/16 dev eth2; ip route add 10.244.7.2/32 dev eth3"
    )
    assert host.call(lambda: asyncio.run(routing.uplinks(IMDS))) == ("eth0", "eth1", "eth2")


@pytest.mark.usefixtures("nmi")
def test_only_what_concerns_us_wakes_the_watch(host: Namespace) -> None:
    """kube-proxy rewrites its tables all day: looking each time would cost more than all tokens."""

    async def woken_by(damage: str, changed: asyncio.Event) -> bool:
        changed.clear()
        host.run(damage)
        await asyncio.sleep(0.05)  # the kernel queued its messages before the command ended: let the loop read them
        return changed.is_set()

    async def act() -> list[bool]:
        await install(Redirect(SETTINGS, lambda _: None))
        changed = asyncio.Event()
        async with watch_host(changed):
            return [
                await woken_by("nft 'add table ip kube-proxy; add chain ip kube-proxy x'", changed),
                await woken_by("nft delete table inet podidentity_guard", changed),
                await woken_by("nft flush chain ip podidentity prerouting", changed),
                await woken_by("ip rule del pref 90", changed),
                await woken_by("ip route del default", changed),
            ]

    assert host.call(lambda: asyncio.run(act())) == [False, True, True, True, True]


@pytest.mark.usefixtures("nmi")
def test_without_any_message_the_interval_finds_it(host: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """--ipt-update-interval-sec bounds how long damage stands of which the kernel said nothing."""

    @contextlib.asynccontextmanager
    async def deaf(_: asyncio.Event, **_options: bool) -> AsyncIterator[None]:
        yield

    monkeypatch.setattr(redirecting, "watch_host", deaf)

    async def act() -> tuple[str, ...]:
        heard: asyncio.Queue[tuple[str, ...]] = asyncio.Queue()
        redirect = Redirect(RedirectSettings(IMDS, 80, NODE, PORT, check_seconds=0.2), heard.put_nowait)
        await install(redirect)
        keeping = asyncio.create_task(redirect.run())
        host.run("nft delete table ip podidentity; ip rule del pref 91")
        async with asyncio.timeout(30):
            found = await heard.get()
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        return found

    found = host.call(lambda: asyncio.run(act()))
    assert found == (f"ip rule `pref 91 to {IMDS} prohibit` is missing", "table ip podidentity is missing")


def test_the_unit_before_kubelet_loads_the_same_guard(host: Namespace) -> None:
    """What docs/configure/closing-the-window.md tells to put on a node is what NMI keeps there."""
    page = Path(__file__).parents[3] / "docs" / "configure" / "closing-the-window.md"
    unit, tables = (block.partition("```")[0] for block in page.read_text().split("```\n# /etc/")[1:3])
    for command in re.findall(r"^ExecStart=/usr/sbin/(ip .*)$", unit, re.MULTILINE):
        host.run(command)
    host.run(f"nft -f - <<'END'\n{tables.partition(chr(10))[2]}END")

    async def differences() -> tuple[str, ...]:
        forbidden = interception.Forbidden(IMDS)
        return (
            *await routing.missing_rules(IMDS),
            *await nftables.differences(interception.guard(forbidden)),
            *await nftables.differences(interception.bridge_guard(forbidden)),
        )

    assert host.call(lambda: asyncio.run(differences())) == ()


def test_a_listener_that_is_gone_is_found(host: Namespace) -> None:
    """When NMI's listener is gone, NMI is not ready, although the rules of the redirect still stand."""

    async def troubles(redirect: Redirect) -> tuple[str, ...]:
        await install(redirect)
        return redirect.troubles()

    assert within(host, troubles) == (f"nobody listens at {NODE}:{PORT}",)
    server = Server(host, NODE, PORT, "nmi")
    assert within(host, troubles) == ()
    server.close()


@pytest.mark.usefixtures("nmi")
@pytest.mark.parametrize(
    ("made", "found"),
    [
        ("ip link add cilium_host type veth peer name cilium_net", "cilium_host (made by an eBPF network plugin)"),
        ("ip link add bpfin.cali type veth peer name bpfout.cali", "bpfin.cali (made by an eBPF network plugin)"),
        (f"ip link add veth5 type veth peer name pod5; {FILTER.format('veth5')}", "veth5 (a tc BPF program)"),
    ],
)
def test_signs_of_an_ebpf_datapath_make_it_not_ready(host: Namespace, made: str, found: str) -> None:
    """What may carry packets past netfilter is named; whoever has checked it may accept it."""
    host.run(made)

    async def troubles(settings: RedirectSettings) -> tuple[str, ...]:
        redirect = Redirect(settings, lambda _: None)
        await install(redirect)
        return redirect.troubles()

    (told,) = host.call(lambda: asyncio.run(troubles(SETTINGS)))
    assert found in told
    accepting = RedirectSettings(IMDS, 80, NODE, PORT, accept_ebpf=True)
    assert host.call(lambda: asyncio.run(troubles(accepting))) == ()


@pytest.mark.usefixtures("nmi")
def test_the_uplinks_own_filters_are_no_sign(host: Namespace) -> None:
    """Filters on the uplink concern packets from outside, and do not count as signs of an eBPF datapath."""
    host.run(FILTER.format("eth0"))

    async def troubles(redirect: Redirect) -> tuple[str, ...]:
        await install(redirect)
        return redirect.troubles()

    assert within(host, troubles) == ()


@pytest.mark.usefixtures("nmi")
def test_the_command_uninstalls_everything_also_without_a_network(host: Namespace) -> None:
    """Tables of all families and both rules; a second time there is nothing to do, and that is no error."""
    before = host.run("nft list ruleset; ip rule")
    within(host, install)
    within(host, Redirect.hold_new_connections)
    host.run("nft add table bridge podidentity_ports; ip route del default")
    for _ in range(2):
        status, said = run_in(host, os.environ["PATH"], "--uninstall")
        assert (status, "is removed" in said) == (0, True), said
        assert host.run("nft list ruleset; ip rule") == before


def test_the_command_waits_for_an_nmi_that_is_ending(host: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would put the interception up again: uninstalling waits for its end, and gives up in a sentence."""
    running = Server(host, "127.0.0.1", PORT, "nmi")
    started = time.monotonic()
    ending = threading.Timer(2.0, running.close)
    ending.start()
    status, said = run_in(host, os.environ["PATH"], "--uninstall")
    assert (status, "is removed" in said) == (0, True), said
    assert time.monotonic() - started >= 2.0
    ending.join()
    staying = Server(host, "127.0.0.1", PORT, "nmi")
    monkeypatch.setattr(uninstalling, "_LEAVING_SECONDS", 0.5)
    try:
        with pytest.raises(HostError, match="delete the DaemonSet nmi first, with --cascade=foreground"):
            host.call(lambda: asyncio.run(uninstalling.uninstall(Settings("n1"))))
    finally:
        staying.close()


@pytest.mark.parametrize(("missing", "package"), [("nft", "nftables"), ("ip", "iproute2")])
def test_a_missing_program_is_one_sentence(host: Namespace, tmp_path: Path, missing: str, package: str) -> None:
    """It says which, and which package has it."""
    path = programs(tmp_path, *({"nft", "ip"} - {missing}))
    status, said = run_in(host, path)
    assert status == 3
    assert said.strip().endswith(f"the program `{missing}` is not on PATH; install the Debian package {package}")
    assert len(said.strip().splitlines()) == 1


def test_a_kernel_without_netfilter_is_one_sentence(host: Namespace, tmp_path: Path) -> None:
    """What `nft` says, and what the kernel needs."""
    path = programs(tmp_path, "ip", "sh")
    said_by_nft = "Error: Could not process rule: Operation not supported"
    (tmp_path / "nft").write_text(f"#!/bin/sh\necho '{said_by_nft}' >&2; exit 1\n")
    (tmp_path / "nft").chmod(0o755)
    status, said = run_in(host, path)
    assert status == 3
    assert said_by_nft in said
    assert said.strip().endswith("nf_tables, nft_nat, nft_fib and nf_conntrack are needed.")
    assert len(said.strip().splitlines()) == 1


LOGGING = """\
#!/bin/sh
text=$(case "$*" in *-) cat;; esac)
listening=$(grep -qi ":0A13 00000000:0000 0A" /proc/thread-self/net/tcp && echo listening || echo closed)
flat=$(printf %s "$text" | tr '\\n' ' ')
echo "{name} $* | $flat | $listening" >> {log}
printf '%s\\n' "$text" | exec {program} "$@"
"""


def quiet_for_a_second(log: Path) -> bool:
    """Return whether no program ran: one that is run again and again for nothing runs dozens of times in a second."""
    before = log.stat().st_size
    time.sleep(1)
    return log.stat().st_size == before


def test_the_order_leaves_no_gap(tmp_path: Path) -> None:
    """Ip rules, guard, listener, redirect with new connections held back, old ones ended, and last the hold lifted."""
    log = tmp_path / "calls"
    for name in ("nft", "ip", "conntrack"):
        wrapper = tmp_path / name
        wrapper.write_text(LOGGING.format(name=name, log=log, program=shutil.which(name)))
        wrapper.chmod(0o755)
    with Network("routed") as network, Node(network, tmp_path) as node:
        node.search_path = f"{tmp_path}:{os.environ['PATH']}"
        node.start()
        until(lambda: quiet_for_a_second(log), "nothing is looked at, let alone repaired, while nothing changes", 30)
    calls = log.read_text().splitlines()

    def at(holds: Callable[[str], bool]) -> int:
        return next(number for number, line in enumerate(calls) if holds(line))

    guard = at(lambda line: "table inet podidentity_guard" in line)
    rules = at(lambda line: line.startswith("ip") and "rule add pref 90" in line and "pref 91" in line)
    nat = at(lambda line: "table ip podidentity {" in line)
    ended = at(lambda line: line.startswith("conntrack -D"))
    lifted = at(lambda line: "delete table ip podidentity_hold" in line and "{" not in line)
    assert [rules, guard, nat, ended, lifted] == sorted([rules, guard, nat, ended, lifted])
    assert (
        sum("table inet podidentity_guard {" in line for line in calls) == 1
    )  # once: after a crash, clients wait for it
    assert "table ip podidentity_hold {" in calls[nat]
    assert [calls[number].rsplit(" | ", 1)[1] for number in (guard, rules, nat)] == ["closed", "closed", "listening"]


@pytest.mark.parametrize("guarded", [False, True])
def test_pods_on_the_uplinks_own_bridge_are_kept_from_imds(*, guarded: bool) -> None:
    """Their packets are never routed: a guard of the bridge's own stops them. Without it they get through."""
    with contextlib.ExitStack() as opened:
        node, pod, azure = (opened.enter_context(contextlib.closing(Namespace())) for _ in range(3))
        node.run(
            f"ip link add br0 type bridge; ip addr add {NODE}/24 dev br0; ip link set br0 up\n"
            f"ip link add eth0 type veth peer name eth0 netns {azure.path}; ip link set eth0 master br0 up\n"
            f"ip link add veth0 type veth peer name eth0 netns {pod.path}; ip link set veth0 master br0 up\n"
            "ip route add default via 192.168.77.1"
        )
        azure.run(f"ip addr add 192.168.77.1/24 dev eth0; ip addr add {IMDS}/32 dev lo; ip link set eth0 up")
        pod.run("ip addr add 192.168.77.20/24 dev eth0; ip link set eth0 up; ip route add default via 192.168.77.1")
        imds = Server(azure, IMDS, 80, "imds")
        if guarded:
            within(node, Redirect.put_up_guard)
        assert fetch(pod) == ("TimeoutError" if guarded else "imds")
        assert fetch(node) == "imds"
        imds.close()


@pytest.mark.usefixtures("nmi")
def test_old_tables_of_iptables_are_not_loaded_by_looking(host: Namespace) -> None:
    """Looking for upstream's chain does not load iptables-legacy's tables on a host that does not use them."""
    within(host, install)
    assert host.run("cat /proc/thread-self/net/ip_tables_names") == ""


@pytest.mark.usefixtures("nmi")
@pytest.mark.parametrize(
    "damage",
    [
        "nft add element bridge podidentity_ports claimed '{ 10.9.9.9 }'",
        "nft flush set bridge podidentity_ports claimed",
    ],
)
def test_a_set_that_somebody_changed_is_seen(host: Namespace, damage: str) -> None:
    """NMI compares the elements of its sets as well as its rules, and notices a set that somebody changed."""
    table = nftables.Table(
        "bridge",
        "podidentity_ports",
        (nftables.Chain("prerouting", "filter", "prerouting", -300, ("ip saddr @claimed counter drop",)),),
        (nftables.Set("claimed", "ipv4_addr", ("10.0.0.1", "10.0.0.2")), nftables.Set("empty", "ifname", ())),
    )

    def differences() -> tuple[str, ...]:
        return host.call(functools.partial(asyncio.run, nftables.differences(table)))

    host.call(lambda: asyncio.run(nftables.replace(table)))
    assert differences() == ()
    host.run(damage)
    assert differences() == ("table bridge podidentity_ports set claimed does not hold what it should",)
