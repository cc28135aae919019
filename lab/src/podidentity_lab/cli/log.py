"""`podidentity lab log`: requests to the lab's Azure, one line each. What an entry holds is in `azure.log`."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import click

from podidentity_lab import control
from podidentity_lab.directory import Directory

WAIT_SECONDS = 5
"""How long the lab is asked to wait for the next entry; Ctrl-C works meanwhile."""

_FIRST_REFUSAL = 400
SERVICES = {
    "imds": "IMDS",
    "entra": "Entra ID",
    "arm": "ARM",
    "graph": "Graph",
    "keyvault": "Key Vault",
    "blob": "Blob storage",
    "": "an unknown host",
}
"""Every service that an entry of the log can name, as people call it."""

Entry = dict[str, Any]


def entries(lab: Directory, *, follow: bool) -> Iterator[Entry]:
    """Yield all entries and, with `follow`, each new one until the lab is gone. Raises `LabError`."""
    log = control.ask(lab, "GET", "/azure/log")
    yield from log
    last = log[-1]["number"] if log else 0
    while follow and lab.is_alive():
        for entry in control.ask(lab, "GET", f"/azure/log?after={last}&wait={WAIT_SECONDS}"):
            last = entry["number"]
            yield entry


def render_text(entry: Entry) -> str:
    """Return one line: when, who, which service, for what, with which identity, and the answer."""
    moment = datetime.fromtimestamp(entry["time"], UTC).strftime("%H:%M:%S.%f")[:-3]
    line = f"{moment}  {entry['asker']} → {_service_of(entry)}: {_request_of(entry)}"
    if entry["who"]:
        line += f", as {entry['identity'] or entry['who']}"
    answer = f"{entry['status']} {entry['why']}".rstrip()
    return click.style(f"{line}: {answer}", fg="red" if entry["status"] >= _FIRST_REFUSAL else None)


def render_json(entry: Entry) -> str:
    """Return the whole entry as JSON on one line."""
    return json.dumps(entry, ensure_ascii=False)


def _service_of(entry: Entry) -> str:
    service = SERVICES[entry["service"]]
    if entry["service"] in {"keyvault", "blob"}:
        return f"{service} {entry['host'].partition('.')[0]}"
    return service if entry["service"] else f"{service} {entry['host']}"


def _request_of(entry: Entry) -> str:
    path, _, query = entry["what"].partition("?")
    if entry["resource"]:
        return f"token for {entry['resource']}" + (f" naming {_short(query)}" if query else "")
    return f"{entry['method']} {_short(path)}"


def _short(path: str) -> str:
    """Return what follows the last provider of an ARM path, with the query; any other path as it is."""
    resource, provider, rest_of_path = path.rpartition("/providers/")
    if not provider:
        return path
    name, _, _ = resource.partition("=")
    start = f"{name}=" if "=" in resource else ""
    return f"{start}.../{rest_of_path.partition('/')[2]}"
