"""The budget, row by row: what is promised, which line of which program shows it, and how its figures are written."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from measured import lab_figures, programs
from measured.lab_figures import ratio

Line = dict[str, Any]
Render = Callable[[dict[str, Any]], str]


@dataclass(frozen=True)
class Row:
    """`line` is the name of a program's JSON line, `program` its file in bench/; `render` writes the line's figures.

    `limits` names the entries of the line's `over` that are this row's; empty: all of them.
    """

    claim: str
    budget: str
    program: str
    line: str
    render: Render
    limits: tuple[str, ...] = ()

    def verdict(self, line: Line) -> str:
        """Return whether the row is within its budget, as the page has it."""
        excess = [entry for entry in line["over"] if not self.limits or any(name in entry for name in self.limits)]
        return "**no**" if excess else "yes"


def _over_go(kind: str) -> Render:
    def render(figures: dict[str, Any]) -> str:
        return "; ".join(f"{way} {ratio(setting[f'nmi over go, {kind}'])}" for way, setting in _full(figures).items())

    return render


def _beside_reference(figures: dict[str, Any], name: str, digits: int = 1) -> str:
    """Write a ratio to a reference of the same run; nothing where an older line has none."""
    value = figures.get(name)
    if value is None:
        return ""
    return f"{ratio(value) if isinstance(value, dict) else f'{value:.{digits}f}'} x; "


def _full(figures: dict[str, Any]) -> dict[str, Any]:
    return {way: figures[f"{way}, 250 pods"] for way in ("loopback", "redirect")}


def _p99(figures: dict[str, Any]) -> str:
    return "; ".join(
        f"{way} {_beside_reference(setting, 'nmi p99 over go, known head').replace(';', ',')}"
        f"{setting['nmi, known head']['p99_ms']['median']:.1f} ms"
        for way, setting in _full(figures).items()
    )


def _pods(figures: dict[str, Any]) -> str:
    key = "nmi over go, known head"
    return "; ".join(
        f"{way} {setting[key]['median'] / figures[f'{way}, 1 pods'][key]['median']:.2f}"
        for way, setting in _full(figures).items()
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


def _broker_over_go(figures: dict[str, Any]) -> str:
    ways = {way: setting for way, setting in figures.items() if way != "memory"}
    return "; ".join(
        f"{way} {ratio(setting['broker over go'])}, {setting['broker']['cpu_micros']['median']:.0f} µs"
        for way, setting in ways.items()
    )


def _broker_memory(figures: dict[str, Any]) -> str:
    memory = figures["memory"]
    return f"{memory['rss_mib']:.0f} MiB; {memory['rss_mib_idle']:.0f} before the first"


def _admission(figures: dict[str, Any]) -> str:
    return "; ".join(
        f"{way}: p50 {ratio(setting['p50 over nothing'])}, p99 {ratio(setting['p99 over nothing'])}, "
        f"{setting['podidentity, p50_ms']['median']:.1f} and {setting['podidentity, p99_ms']['median']:.1f} ms "
        f"(without any webhook {setting['none, p50_ms']['median']:.1f} and {setting['none, p99_ms']['median']:.1f})"
        for way, setting in figures.items()
        if way != "rss_mib"
    )


def _leaks(figures: dict[str, Any]) -> str:
    counts = [entry for kind in figures.values() for entry in kind.items()]
    through_nmi = sum(entry["leaked"] for name, entry in counts if "control" not in name)
    control = sum(entry["leaked"] for name, entry in counts if "flushed and filled" in name)
    return f"{through_nmi} packets; the same traffic past a chain that is flushed and filled: {control:,}"


def _present(phase: str) -> Render:
    def render(figures: dict[str, Any]) -> str:
        entry = figures[phase]
        milliseconds = f"p50 {entry['token_p50_ms']:.0f} ms, p99 {entry['token_p99_ms']:.0f} ms ({entry['pods']} pods)"
        return _beside_reference(entry, "token_p99_over_start", 2) + milliseconds

    return render


def _new(figures: dict[str, Any]) -> str:
    beyond = [run["token_ms"][0] for run in figures.values()]
    starts = [run["token_ms"][0] / run["start_ms"] for run in figures.values() if "start_ms" in run]
    largest = f"{max(starts):.1f} x; " if starts else ""
    return f"{largest}{min(beyond):.0f} to {max(beyond):.0f} ms beyond ARM's {', '.join(sorted(figures, key=float))} s"


def _cluster(figures: dict[str, Any]) -> str:
    loops = f" ({figures['cpu_over_loop']:,} loops)" if "cpu_over_loop" in figures else ""
    return (
        f"{figures['last_pod_to_all_assigned_s']:.1f} s; CPU {figures['cpu_s']:.1f} s{loops}; "
        f"{figures['rss_mb']:.0f} MB; {figures['patches']:.0f} PATCHes"
    )


def _lone(figures: dict[str, Any]) -> str:
    ratio_to_small = _beside_reference(figures, "lone_p99_over_small", 1)
    return f"{_cluster(figures)}; a lone pod {ratio_to_small}p99 {figures['lone_p99_ms']:.0f} ms"


def _arm(figures: dict[str, Any]) -> str:
    burst = figures["burst"].values()
    return (
        f"{max(calls['GET'] for calls in burst)} GET, {max(calls['PATCH'] for calls in burst)} PATCH; "
        f"{figures['calls_while_idle']} while idle; {figures['pause_after_429_s']:.1f} s after `Retry-After: 3`"
    )


def _start_up(figures: dict[str, Any]) -> str:
    cpu_ms, bare_ms = figures["import_cpu_ms"]["median"], figures["python_alone_cpu_ms"]["median"]
    milliseconds = f"{cpu_ms:.0f} ms (Python alone {bare_ms:.0f}); ready after {figures['ready_s']['median']:.2f} s"
    return _beside_reference(figures, "imports over reference") + milliseconds


def _plan(figures: dict[str, Any]) -> str:
    growth = f"a pod costs {figures['growth']:.2f} x at 20,000 over 1,000"
    return f"{_beside_reference(figures, 'plan_over_loop')}{figures['plan_ms']:.0f} ms; {growth}"


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


def _fleet(figures: dict[str, Any]) -> str:
    results = figures["own decision"]
    empty = [result["cpu_ms_for_a_pod"] for result in results.values() if not result["nodes"]]
    watched = [result for result in results.values() if result["nodes"]]
    (former,) = figures["assigned identities by label"].values()
    cpu = ", ".join(f"{result['cpu_ms_for_a_pod']:.1f} with {result['nodes']:,}" for result in watched)
    return (
        f"{watched[-1]['cpu_ms_for_a_pod'] * len(empty) / sum(empty):.2f} x: {min(empty):.1f} and {max(empty):.1f} ms "
        f"without nodes, {cpu}; {watched[-1]['memory_for_a_node_kb']:.0f} KB. By label, as before, "
        f"{former['nodes']:,} nodes: {former['cpu_ms_for_a_pod']:.1f} ms, {former['memory_for_a_node_kb']:.0f} KB"
    )


def _neighbour(figures: dict[str, Any]) -> str:
    ratios, rounds = figures["p99 beside over without"], figures["rounds"]
    go = sorted(phases["go, connections"]["p99_ms"] for phases in rounds)[len(rounds) // 2]
    begin = ", ".join(f"{phases['all']['begin_p99_ms'] / phases['quiet']['p99_ms']:.2f}" for phases in rounds)
    return (
        f"{ratio(ratios['all'])} x its p99, in the first ten seconds of each time {begin}; "
        f"its connections alone {ratio(ratios['connections'])} x, and with Go "
        f"`net/http` in NMI's place a p99 of {go:,.0f} ms; "
        f"{figures['failed']} of {figures['requests_beside']:,} failed; "
        f"NMI {figures['memory_mib']['nmi']:.0f} MiB, MIC {figures['memory_mib']['mic']:.0f} MiB"
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
    Row("p99 with 32 keep-alive connections, over Go's", "<= 1.5", "nmi", "nmi", _p99, (": p99",)),
    Row("calls to IMDS for 1,000 first requests at once", "1", "imds_calls", "imds_calls", _calls),
    Row("NMI's memory, 250 pods, 20 identities", "<= 52 MiB, flat", "memory", "memory", _memory),
    Row(
        "packets of pods at IMDS: rules replaced 100 times, daemon killed, ruleset flushed",
        "0",
        "redirect",
        "redirect",
        _leaks,
    ),
    Row(
        "pod scheduled to token, identity on the scale set",
        "p99 <= 2 x a Python's start",
        "pod_to_token",
        "pod_to_token",
        _present("quiet"),
        ("quiet",),
    ),
    Row(
        "the same while another scale set's PATCH hangs",
        "p99 <= 2 x a Python's start",
        "pod_to_token",
        "pod_to_token",
        _present("hung"),
        ("hung",),
    ),
    Row(
        "a cached token of the broker over TLS: CPU over Go `net/http`, keep-alive and with a connection each",
        "<= 10; <= 5",
        "broker",
        "broker",
        _broker_over_go,
        ("over_go",),
    ),
    Row("the broker's memory after 5,000 callers", "<= 100 MiB", "broker", "broker", _broker_memory, ("rss_mib",)),
    Row(
        "creation of a pod that the webhook changes, over one that a Go webhook lets pass, kube-apiserver",
        "p50 <= 2, p99 <= 2",
        "webhook",
        "webhook",
        _admission,
        ("over_nothing",),
    ),
    Row(
        "the webhook's memory after them",
        "<= 100 MiB",
        "webhook",
        "webhook",
        lambda figures: f"{figures['rss_mib']:.0f} MiB",
        ("rss_mib",),
    ),
    Row(
        "pod scheduled to token, identity new",
        "ARM's time + 4 x a Python's start",
        "new_identity",
        "new_identity",
        _new,
    ),
    Row(
        "2,000 pods, 100 namespaces, 30 nodes, 3 scale sets, PATCH 5 s, kube-apiserver: all Assigned after the last",
        "<= 2.2 x a PATCH; CPU <= 300 loops; <= 135 MB; <= 6 PATCHes",
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
        "CPU <= 1,400 loops; <= 300 MB; <= 160 PATCHes; p99 <= 2 x that of 2,000 pods",
        "mic",
        "mic real large",
        _lone,
    ),
    Row(
        "100,000 pods, 2,000 identities, 5,000 nodes, 50 scale sets, kube-apiserver; likewise",
        "<= 600 MB; p99 <= 4 x that of 2,000 pods",
        "mic",
        "mic limit",
        _lone,
    ),
    Row(
        "MIC's plan, 10,000 pods, 1,000 identities and bindings, 500 nodes, 20 scale sets",
        "<= 8 loops, linear",
        "mic",
        "mic plan",
        _plan,
    ),
    Row(
        "ARM calls for each scale set: a burst, idle, after 429",
        "1 GET, 1 PATCH; 0; obeyed",
        "arm_calls",
        "arm_calls",
        _arm,
    ),
    Row(
        "4,000 nodes' watches on a kube-apiserver: its CPU for a pod that starts, over none; its memory for a node",
        "<= 1.2 x; <= 150 KB",
        "fleet",
        "fleet",
        _fleet,
    ),
    Row(
        "a token beside a neighbour of another namespace that does everything at once for two minutes, over without",
        "<= 2 x its p99; 0 failed; <= 128 MiB, 256 MiB",
        "neighbour",
        "neighbour",
        _neighbour,
    ),
    Row(
        "CPU of NMI's imports; start to `/readyz` with 250 pods",
        "<= 5.5 x `import asyncio, ssl`",
        "start_up",
        "start_up",
        _start_up,
    ),
    Row("soak: pods come and go, watches cut, 5 % of IMDS fails", "0 wrong, 0 lost, flat", "soak", "soak", _soak),
    Row(
        "the same with `--kubernetes real`: NMI on two nodes, MIC twice",
        "0 wrong, 0 lost, flat",
        "soak",
        "soak real",
        _soak_real,
    ),
    Row(
        "the lab's page, 1,000 answers a second for 10 s, a headless Chromium: answers neither shown nor counted; CPU "
        "for 1,000 of them, of its server and of the browser; the size of the document",
        "0; <= 15 loops; <= 100 loops; <= 10,000 elements",
        "lab",
        "lab",
        lab_figures.page,
        ("page:",),
    ),
    Row(
        "the lab's start to its first answers, over that of kube-apiserver with etcd, Azurite and moto together",
        "<= 1 x",
        "lab",
        "lab",
        lab_figures.start,
        ("ready",),
    ),
    Row(
        "the memory of all its processes, over all of theirs: after the start; after the requests below",
        "<= 0.5 x; <= 0.5 x",
        "lab",
        "lab",
        lab_figures.memory,
        ("mib",),
    ),
    Row(
        "requests one after the other: the lab's time over kube-apiserver's",
        "list <= 2, get <= 1.5, create <= 4",
        "lab",
        "lab",
        lab_figures.requests("kube-apiserver"),
        ("kube-apiserver",),
    ),
    Row(
        "likewise, a blob of 4 KiB, over Azurite's",
        "<= 1.5",
        "lab",
        "lab",
        lab_figures.requests("azurite"),
        ("azurite",),
    ),
    Row(
        "likewise, a list and a secret, over those of moto (IAM, Secrets Manager) without TLS",
        "<= 1",
        "lab",
        "lab",
        lab_figures.requests("moto"),
        ("moto",),
    ),
)


def run_name(name: str) -> str:
    """Return what `run` takes for the name of a program, or of a line of one."""
    lines = {row.line: row.program for row in ROWS}
    return name if name in programs.PROGRAMS | programs.LONG else lines.get(name, name)


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
    """Return our figure for a row of `UPSTREAM`."""
    return _RENDERERS[kind](figures)


def cpu_split(figures: dict[str, Any]) -> list[str]:
    """Return rows of a table: the servers' own CPU and the kernel's, in us for each request; none without figures."""
    return [
        f"| {way}, {label} | {' | '.join(_micros(setting, server, part) for server in ('nmi', 'go', 'nginx'))} |"
        for way, setting in _full(figures).items()
        for label, part in (("its own", "user_micros"), ("the kernel's", "system_micros"))
        if part in setting["nmi, known head"]
    ]


def _micros(setting: dict[str, Any], server: str, part: str) -> str:
    figures = setting.get(f"{server}, known head", {})
    return f"{figures[part]['median']:.1f}" if part in figures else "-"


def _nmi(figures: dict[str, Any]) -> dict[str, Any]:
    servers: dict[str, Any] = figures["redirect, 250 pods"]["nmi, new head"]
    return servers


def _disturbance(name: str) -> Render:
    def render(figures: dict[str, Any]) -> str:
        entries = [kind[name] for kind in figures.values()]
        times, leaks = sum(entry["times"] for entry in entries), sum(entry["leaked"] for entry in entries)
        return f"{leaks} packets ({times} times)"

    return render


_RENDERERS: dict[str, Render] = {
    "cpu": lambda figures: f"{_nmi(figures)['cpu_micros']['median']:.0f} µs (new heads)",
    "rate": lambda figures: f"{_nmi(figures)['per_second']:,}",
    "latency": lambda figures: f"{_nmi(figures)['p50_ms']:.1f} ms; {_nmi(figures)['p99_ms']['median']:.1f} ms",
    "memory": lambda figures: f"{figures['250']['rss_mib'] * 1.048576:.0f} MB",
    "calls": _calls,
    "killed": _disturbance("daemon killed"),
    "flushed": _disturbance("ruleset flushed"),
    "quiet": _present("quiet"),
    "hung": _present("hung"),
    "cluster": _cluster,
}
