"""How the figures of bench/lab.py are written: ratios of the lab to other programs, and what was measured."""

from collections.abc import Callable
from typing import Any


def ratio(spread: dict[str, float]) -> str:
    """Return a ratio, with the least and the most of all rounds."""
    return f"{spread['median']:.2f} ({spread['least']:.2f} to {spread['most']:.2f})"


def page(figures: dict[str, Any]) -> str:
    """Return what the lab's page took and what arrived; "" where no browser was there."""
    values = figures.get("page")
    if values is None:
        return ""
    return (
        f"{values['uncounted']} of {values['answers']:,}; {values['cpu_over_loop']:.1f} loops, "
        f"{values['cpu_share'] * 100:.0f} % of a core; {values['browser_over_loop']:.0f} loops, "
        f"{values['browser_cpu_share'] * 100:.0f} %; {values['elements']:,} elements; frames p99 "
        f"{values['frame_p99_ms']:.0f} ms, longest {values['frame_longest_ms']:.0f} ms"
    )


def start(figures: dict[str, Any]) -> str:
    """Return how long the lab takes to start, over the others together, and the seconds of each; "" without them."""
    if "ready_s over all" not in figures:
        return ""
    seconds = ", ".join(f"{name} {value['median']:.1f}" for name, value in figures["ready_s"].items())
    return f"{ratio(figures['ready_s over all'])} x; seconds: {seconds}"


def memory(figures: dict[str, Any]) -> str:
    """Return the lab's memory over that of the others together, idle and after requests, and the MiB of each."""
    if "mib over all" not in figures:
        return ""
    sizes = ", ".join(
        f"{name} {value['median']:.0f} and {figures['mib'][name]['median']:.0f}"
        for name, value in figures["idle_mib"].items()
    )
    return f"{ratio(figures['idle_mib over all'])} x; {ratio(figures['mib over all'])} x; MiB: {sizes}"


def requests(reference: str) -> Callable[[dict[str, Any]], str]:
    """Return what writes the ratios to one of the others, and the requests a second of both."""

    def render(figures: dict[str, Any]) -> str:
        return "; ".join(
            f"{name.removesuffix(f', {reference}')} {ratio(entry['time over'])}, "
            f"{entry['lab_per_second']['median']:,.0f} and {entry['other_per_second']['median']:,.0f} a second"
            for name, entry in figures["requests"].items()
            if name.endswith(f", {reference}")
        )

    return render
