"""The plots of docs/performance.md: the same figures give the same bytes, so that a diff shows what changed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from measured.page import PLOTTED

Lines = Mapping[str, dict[str, Any]]
OUR_COLOUR, OTHER_COLOUR = "#1f5fa8", "#b3542c"
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "podidentity",  # names inside the SVG are otherwise random
    "svg.fonttype": "none",  # text stays text: small, and readable in a diff
    "font.family": "sans-serif",
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
}


def draw(lines: Lines, directory: Path, form: str = "svg") -> list[Path]:
    """Draw each plot whose figures exist; return the files."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    with mpl.rc_context(STYLE):
        for name, line in PLOTTED.items():
            if line not in lines:
                continue
            figure = Figure(figsize=(5.6, 3.0), layout="constrained")
            figure.patch.set_facecolor("white")  # also readable on a dark page
            PLOTS[name](figure.subplots(), lines[line]["figures"])
            path = directory / f"{name}.{form}"
            figure.savefig(path, format=form, dpi=150, metadata={"Date": None} if form == "svg" else None)
            paths.append(path)
    return paths


def _connections(axes: Axes, figures: dict[str, Any]) -> None:
    for name, colour, label in (("nmi", OUR_COLOUR, "NMI"), ("go", OTHER_COLOUR, "Go net/http, the same bytes")):
        for kind, style in (("p50_ms", "-"), ("p99_ms", "--")):
            series = figures[name]
            pairs = sorted((int(many), entry[kind]["median"]) for many, entry in series.items())
            axes.plot(
                *zip(*pairs, strict=True), style, color=colour, marker="o", markersize=3, label=f"{label}, {kind[:3]}"
            )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0f}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    _label(axes, "keep-alive connections", "milliseconds")


def _memory(axes: Axes, figures: dict[str, Any]) -> None:
    for name, style, label in (("rss_mib", "-", "under load"), ("rss_mib_idle", "--", "started, idle")):
        pairs = sorted((int(pods), entry[name]) for pods, entry in figures.items())
        axes.plot(*zip(*pairs, strict=True), style, color=OUR_COLOUR, marker="o", markersize=3, label=label)
    axes.plot([250], [52], "v", color=OTHER_COLOUR, label="budget")
    axes.set_ylim(0, 60)
    _label(axes, "pods on the node", "RSS, MiB")


def _plan(axes: Axes, figures: dict[str, Any]) -> None:
    for kind, style, label in (("first", "-", "nothing assigned yet"), ("settled", "--", "everything assigned")):
        pairs = sorted(
            (int(name.split("_")[1]), value) for name, value in figures.items() if name.startswith(f"{kind}_")
        )
        axes.plot(*zip(*pairs, strict=True), style, color=OUR_COLOUR, marker="o", markersize=3, label=label)
    axes.plot([10_000], [150], "v", color=OTHER_COLOUR, label="budget")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_ylim(bottom=0)
    _label(axes, "pods", "milliseconds of CPU")


def _time_to_assigned(axes: Axes, figures: dict[str, Any]) -> None:
    seconds = sorted(float(name) for name in figures)
    for number, (style, label) in enumerate((("-", "first PATCH of a scale set"), ("--", "the next at once"))):
        values = [arm_seconds + figures[f"{arm_seconds:g}"]["assigned_ms"][number] / 1e3 for arm_seconds in seconds]
        axes.plot(seconds, values, style, color=OUR_COLOUR, marker="o", markersize=3, label=label)
    axes.plot(seconds, seconds, ":", color=OTHER_COLOUR, label="ARM alone")
    axes.set_ylim(bottom=0)
    _label(axes, "seconds that ARM takes for a PATCH", "seconds to Assigned")


def _label(axes: Axes, across: str, up: str) -> None:
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.legend()


PLOTS = {"connections": _connections, "memory": _memory, "plan": _plan, "assigned": _time_to_assigned}
"""How each plot is drawn, by its file name. Which line it draws is in `page.PLOTTED`."""
