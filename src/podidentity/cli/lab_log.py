"""`podidentity lab log`: how a line of the lab's log reads. Words only; `lab.azure.log` says what an entry holds."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import click

from podidentity.lab import control
from podidentity.lab.directory import Directory

WAIT_SECONDS = 5
"""How long the lab is asked to wait for the next entry; Ctrl-C works meanwhile."""

_FIRST_REFUSAL = 400
_SERVICES = {
    "imds": "IMDS",
    "entra": "Entra ID",
    "arm": "ARM",
    "graph": "Graph",
    "keyvault": "Key Vault",
    "": "an unknown host",
}

Entry = dict[str, Any]


def entries(lab: Directory, *, follow: bool) -> Iterator[Entry]:
    """All entries, then, with `follow`, each as it comes until the lab is gone. Raises `LabError`."""
    found = control.ask(lab, "GET", "/azure/log")
    yield from found
    last = found[-1]["number"] if found else 0
    while follow and lab.is_alive():
        for entry in control.ask(lab, "GET", f"/azure/log?after={last}&wait={WAIT_SECONDS}"):
            last = entry["number"]
            yield entry


def render_text(entry: Entry) -> str:
    """One line: when, who, whom, for what, with which identity, and the answer."""
    at = datetime.fromtimestamp(entry["time"], UTC).strftime("%H:%M:%S.%f")[:-3]
    line = f"{at}  {entry['asker']} → {_whom(entry)}: {_asked(entry)}"
    if entry["who"]:
        line += f", as {entry['identity'] or entry['who']}"
    answer = f"{entry['status']} {entry['why']}".rstrip()
    return click.style(f"{line}: {answer}", fg="red" if entry["status"] >= _FIRST_REFUSAL else None)


def render_json(entry: Entry) -> str:
    """The entry itself, on one line."""
    return json.dumps(entry, ensure_ascii=False)


def _whom(entry: Entry) -> str:
    service = _SERVICES[entry["service"]]
    if entry["service"] == "keyvault":
        return f"{service} {entry['host'].partition('.')[0]}"
    return service if entry["service"] else f"{service} {entry['host']}"


def _asked(entry: Entry) -> str:
    path, _, named = entry["what"].partition("?")
    if entry["resource"]:
        return f"token for {entry['resource']}" + (f" naming {_short(named)}" if named else "")
    return f"{entry['method']} {_short(path)}"


def _short(path: str) -> str:
    """What follows the last provider of an ARM path, and the query; the whole of any other path."""
    before, provider, after = path.rpartition("/providers/")
    if not provider:
        return path
    name, _, _ = before.partition("=")
    start = f"{name}=" if "=" in before else ""
    return f"{start}.../{after.partition('/')[2]}"
