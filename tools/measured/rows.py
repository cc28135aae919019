"""The budget, row by row: what is promised, which line of which program says so, and how it is told."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Line = dict[str, Any]
Tell = Callable[[dict[str, Any]], str]


@dataclass(frozen=True)
class Row:
    """`line` is the name of a program's JSON line, `program` its file in bench/; `tell` reads the line's figures.

    `limits` names the entries of the line's `over` that are this row's; empty: all of them.
    """

    what: str
    budget: str
    program: str
    line: str
    tell: Tell
    limits: tuple[str, ...] = ()

    def verdict(self, line: Line) -> str:
        """Say whether the row is within its budget."""
        over = [one for one in line["over"] if not self.limits or any(name in one for name in self.limits)]
        return "**no**" if over else "yes"


def ratio(told: dict[str, float]) -> str:
    """Write a ratio and what it was between."""
    return f"{told['median']:.2f} ({told['least']:.2f} to {told['most']:.2f})"


def _over_go(kind: str) -> Tell:
    def tell(figures: dict[str, Any]) -> str:
        return "; ".join(f"{way} {ratio(told[f'nmi over go, {kind}'])}" for way, told in _full(figures).items())

    return tell


def _full(figures: dict[str, Any]) -> dict[str, Any]:
    return {way: figures[f"{way}, 250 pods"] for way in ("loopback", "redirect")}


def _p99(figures: dict[str, Any]) -> str:
    return "; ".join(
        f"{way} {told['nmi, known head']['p99_ms']['median']:.1f} ms" for way, told in _full(figures).items()
    )


def _pods(figures: dict[str, Any]) -> str:
    key = "nmi over go, known head"
    return "; ".join(
        f"{way} {told[key]['median'] / figures[f'{way}, 1 pods'][key]['median']:.2f}"
        for way, told in _full(figures).items()
    )


def _calls(figures: dict[str, Any]) -> str:
    cached, plain = figures["cached"], figures["without cache"]
    return (
        f"{max(cached['calls'])} for {cached['requests']:,}; with `--token-cache=false` "
        f"{max(plain['calls'])} for {plain['requests']}"
    )


def _memory(figures: dict[str, Any]) -> str:
    full = figures["250"]
    return (
        f"{full['rss_mib']:.1f} MiB; {full['rss_mib'] - full['rss_mib_warm']:+.1f} MiB in {full['requests']:,} requests"
    )


def _leaked(figures: dict[str, Any]) -> str:
    told = [one for kind in figures.values() for one in kind.items()]
    ours = sum(one["leaked"] for name, one in told if "control" not in name)
    control = sum(one["leaked"] for name, one in told if "flushed and filled" in name)
    return f"{ours} packets; the same traffic past a chain that is flushed and filled: {control:,}"


def _present(phase: str) -> Tell:
    return lambda figures: (
        f"p50 {figures[phase]['token_p50_ms']:.0f} ms, p99 {figures[phase]['token_p99_ms']:.0f} ms "
        f"({figures[phase]['pods']} pods)"
    )


def _new(figures: dict[str, Any]) -> str:
    beyond = [one["token_ms"][0] for one in figures.values()]
    return f"{min(beyond):.0f} to {max(beyond):.0f} ms beyond ARM's {', '.join(sorted(figures, key=float))} s"


def _cluster(figures: dict[str, Any]) -> str:
    return (
        f"{figures['last_pod_to_all_assigned_s']:.1f} s; CPU {figures['cpu_s']:.1f} s; {figures['rss_mb']:.0f} MB; "
        f"{figures['patches']:.0f} PATCHes"
    )


def _arm(figures: dict[str, Any]) -> str:
    burst = figures["burst"].values()
    return (
        f"{max(one['GET'] for one in burst)} GET, {max(one['PATCH'] for one in burst)} PATCH; "
        f"{figures['calls_while_idle']} while idle; {figures['pause_after_429_s']:.1f} s after `Retry-After: 3`"
    )


def _start_up(figures: dict[str, Any]) -> str:
    return (
        f"{figures['import_cpu_ms']['median']:.0f} ms (Python alone {figures['python_alone_cpu_ms']['median']:.0f}); "
        f"ready after {figures['ready_s']['median']:.2f} s"
    )


def _soak(figures: dict[str, Any]) -> str:
    return (
        f"{figures['wrong']} wrong, {figures['lost']} lost of {figures['requests']:,} in {figures['seconds']:.0f} s; "
        f"{figures['growth_mib']:+.1f} MiB and {figures['descriptors_growth']:+d} open files over the second half"
    )


def _soak_real(figures: dict[str, Any]) -> str:
    slopes = ", ".join(f"{name.split()[0]} {slope:+.1f}" for name, slope in sorted(figures["rss_mib_per_hour"].items()))
    return (
        f"{_soak(figures)}, of the daemon that grew most; {figures['per_second']:.0f} a second, "
        f"{figures['pods']} short pods, {figures['cuts']} cuts, {figures['imds_failures']} failures of IMDS; "
        f"MiB an hour: {slopes}; {figures['leaked_packets']} packets of pods at IMDS"
    )


ROWS = (
    Row(
        "a warm token request: CPU over Go `net/http`, head seen before",
        "<= 0.8",
        "nmi",
        "nmi",
        _over_go("known head"),
        ("known head over go",),
    ),
    Row("likewise, a new head (unique request ID)", "<= 1.25", "nmi", "nmi", _over_go("new head"), ("new head over",)),
    Row("likewise, 250 pods on the node over one", "<= 1.1", "nmi", "nmi", _pods, ("250 pods over 1",)),
    Row("p99 with 32 keep-alive connections", "<= 2 ms", "nmi", "nmi", _p99, (": p99",)),
    Row("calls to IMDS for 1,000 first requests at once", "1", "imds_calls", "imds_calls", _calls),
    Row("NMI's memory, 250 pods, 20 identities", "<= 52 MiB, flat", "memory", "memory", _memory),
    Row(
        "packets of pods at IMDS: rules replaced 100 times, daemon killed, ruleset flushed",
        "0",
        "redirect",
        "redirect",
        _leaked,
    ),
    Row(
        "pod scheduled to token, identity on the scale set",
        "p99 <= 150 ms",
        "pod_to_token",
        "pod_to_token",
        _present("quiet"),
        ("quiet",),
    ),
    Row(
        "the same while another scale set's PATCH hangs",
        "p99 <= 150 ms",
        "pod_to_token",
        "pod_to_token",
        _present("hung"),
        ("hung",),
    ),
    Row("pod scheduled to token, identity new", "ARM's time + 200 ms", "new_identity", "new_identity", _new),
    Row(
        "2,000 pods, 100 namespaces, 30 nodes, 3 scale sets, PATCH 5 s, kube-apiserver: all Assigned after the last",
        "<= 10 s; CPU <= 5.4 s; <= 135 MB; <= 6 PATCHes",
        "mic",
        "mic real",
        _cluster,
    ),
    Row(
        "the same with the lab's API server, a Python program, in its place",
        "CPU, memory, PATCHes likewise; all pods come at once",
        "mic",
        "mic 2,000 pods",
        _cluster,
    ),
    Row(
        "10,000 pods, 1,000 identities, 500 nodes, 20 scale sets, kube-apiserver; a lone pod beside a PATCH that hangs",
        "<= 50 s; CPU <= 27 s; <= 300 MB; <= 160 PATCHes; p99 <= 150 ms",
        "mic",
        "mic real large",
        lambda figures: f"{_cluster(figures)}; p99 {figures['lone_p99_ms']:.0f} ms",
    ),
    Row(
        "MIC's plan, 10,000 pods, 1,000 identities and bindings, 500 nodes, 20 scale sets",
        "<= 150 ms, linear",
        "mic",
        "mic plan",
        lambda figures: f"{figures['plan_ms']:.0f} ms; a pod costs {figures['growth']:.2f} x at 20,000 over 1,000",
    ),
    Row(
        "ARM calls for each scale set: a burst, idle, after 429",
        "1 GET, 1 PATCH; 0; obeyed",
        "arm_calls",
        "arm_calls",
        _arm,
    ),
    Row("CPU of NMI's imports; start to `/readyz` with 250 pods", "<= 250 ms", "start_up", "start_up", _start_up),
    Row("soak: pods come and go, watches cut, 5 % of IMDS fails", "0 wrong, 0 lost, flat", "soak", "soak", _soak),
    Row(
        "the same with `--kubernetes real`: NMI on two nodes, MIC twice",
        "0 wrong, 0 lost, flat",
        "soak",
        "soak real",
        _soak_real,
    ),
)

UPSTREAM = (
    ("token, 250 pods, 32 connections: CPU a request", "1,200 µs", "nmi", "cpu"),
    ("the same: requests a second", "820", "nmi", "rate"),
    ("the same: p50; p99", "37 ms; 95 to 103 ms", "nmi", "latency"),
    ("memory of NMI, 250 pods", "43 to 53 MB", "memory", "memory"),
    ("calls to IMDS", "one for each request", "imds_calls", "calls"),
    ("restart of the daemon under traffic", "28,169 of 31,339 answers with the node's token", "redirect", "killed"),
    ("`nft flush ruleset` under traffic", "6,305 of 7,064 answers with the node's token", "redirect", "flushed"),
    ("pod to token, identity on the scale set", "0.12 s in MIC, then up to 5 s of polling", "pod_to_token", "quiet"),
    ("the same while another scale set's PATCH takes 60 s", "Assigned after 57.5 s", "pod_to_token", "hung"),
    ("2,000 pods, PATCH 5 s, default flags", "784 s", "mic real", "cluster"),
    (
        "the same, its client limit raised to 500 a second",
        "25 s, 5.4 s CPU, 135 MB, 4 PATCHes",
        "mic real",
        "cluster",
    ),
)
"""aad-pod-identity 1.8.17's own programs, measured in another run on the same kind of machine; and our figure."""


def beside_upstream(kind: str, figures: dict[str, Any]) -> str:
    """Our figure for a row of `UPSTREAM`."""
    return _BESIDE[kind](figures)


def cpu_split(figures: dict[str, Any]) -> list[str]:
    """Rows of a table: the servers' own CPU and the kernel's, in microseconds a request; none where it was not told."""
    return [
        f"| {way}, {whose} | {' | '.join(_micros(told, server, part) for server in ('nmi', 'go', 'nginx'))} |"
        for way, told in _full(figures).items()
        for whose, part in (("its own", "user_micros"), ("the kernel's", "system_micros"))
        if part in told["nmi, known head"]
    ]


def _micros(told: dict[str, Any], server: str, part: str) -> str:
    figures = told.get(f"{server}, known head", {})
    return f"{figures[part]['median']:.1f}" if part in figures else "-"


def _nmi(figures: dict[str, Any]) -> dict[str, Any]:
    told: dict[str, Any] = figures["redirect, 250 pods"]["nmi, new head"]
    return told


def _shaken(name: str) -> Tell:
    def tell(figures: dict[str, Any]) -> str:
        shaken = [kind[name] for kind in figures.values()]
        times, leaked = sum(one["times"] for one in shaken), sum(one["leaked"] for one in shaken)
        return f"{leaked} packets ({times} times)"

    return tell


_BESIDE: dict[str, Tell] = {
    "cpu": lambda figures: f"{_nmi(figures)['cpu_micros']['median']:.0f} µs (new heads)",
    "rate": lambda figures: f"{_nmi(figures)['per_second']:,}",
    "latency": lambda figures: f"{_nmi(figures)['p50_ms']:.1f} ms; {_nmi(figures)['p99_ms']['median']:.1f} ms",
    "memory": lambda figures: f"{figures['250']['rss_mib'] * 1.048576:.0f} MB",
    "calls": _calls,
    "killed": _shaken("daemon killed"),
    "flushed": _shaken("ruleset flushed"),
    "quiet": _present("quiet"),
    "hung": _present("hung"),
    "cluster": _cluster,
}
