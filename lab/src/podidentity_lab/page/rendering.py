"""HTML of the page. Every text is escaped by jinja2: names of pods and lines of logs are written by others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import jinja2

from podidentity_lab.page import events, faults
from podidentity_lab.page.overview import Group
from podidentity_lab.page.trails import Trail

_SERVICES = {
    "nmi": "NMI",
    "broker": "Broker",
    "imds": "IMDS",
    "entra": "Entra ID",
    "keyvault": "Key Vault",
    "blob": "Blob storage",
    "arm": "ARM",
    "graph": "Graph",
    "": "unknown host",
}


@dataclass(frozen=True, slots=True)
class View:
    """All that the page shows when it is loaded. `trails` are the oldest first."""

    lab: str
    groups: Sequence[Group]
    switches: Mapping[str, Any]
    trails: Sequence[Trail]


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%H:%M:%S.%f")[:-3]


def identifier(trail: Trail) -> str:
    """Return the ID of a trail's element."""
    return f"trail-{trail.number}"


def _subject(trail: Trail) -> str:
    """Return what was asked for: the resource of the token, or the request itself where no token was asked for."""
    resource = next((step.resource for step in trail.steps if step.resource), "")
    return f"token for {events.host_of(resource)}" if resource else trail.head.target


def _place(step: events.Event) -> str:
    """Return where a step was answered, as far as its name does not say it."""
    if step.station in {"keyvault", "blob"}:
        return step.place.partition(".")[0]
    return step.place if step.station in ("nmi", "broker", "") else ""


def _in_two(reason: str) -> tuple[str, str]:
    """Return a reason's first line, and what follows it: Key Vault writes ten lines."""
    first, _, more_lines = reason.strip().partition("\n")
    return first.strip(), more_lines.strip()


_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.PackageLoader("podidentity_lab.page"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters |= {
    "moment": _moment,
    "identifier": identifier,
    "subject": _subject,
    "place": _place,
    "in_two": _in_two,
    "service": lambda station: _SERVICES.get(station, station),
}
_ENVIRONMENT.globals |= {"SWITCHES": faults.SWITCHES, "unnamed": faults.unnamed}


def page(view: View) -> str:
    """Return the whole page."""
    return _ENVIRONMENT.get_template("page.html").render(view=view)


def row(trail: Trail) -> str:
    """Return the list item of a trail."""
    return _ENVIRONMENT.get_template("trail.html").render(trail=trail)


def groups(parts: Sequence[Group]) -> dict[str, str]:
    """Return the content of each group by its key."""
    template = _ENVIRONMENT.get_template("group.html")
    return {group.key: template.render(group=group) for group in parts}


def switches(current: Mapping[str, Any]) -> dict[str, Any]:
    """Return which switches are on, and a sentence about faults that have no switch."""
    listing = ", ".join(f"{name}={value}" for name, value in faults.unnamed(current).items())
    return {
        "on": {switch.name: switch.is_on(current) for switch in faults.SWITCHES},
        "others": f"Set besides: {listing}" if listing else "",
    }
