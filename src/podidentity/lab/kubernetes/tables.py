"""Objects as the tables that `kubectl get` prints: columns and cells of each kind, made on the server.

Custom resources have the columns of their definition (`additionalPrinterColumns`), built-in kinds those below; every
other kind has name and age. Form: `meta.k8s.io/v1` Table. Called by `api` when a client accepts tables.
"""

import datetime as dt
import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import jsonpath_rfc9535

from podidentity.lab.kubernetes.kinds import Kind

Json = dict[str, Any]
Cell = Callable[[Json], Any]


@dataclass(frozen=True, slots=True)
class Column:
    """One column; `priority` above 0 shows with `-o wide` only."""

    name: str
    cell: Cell
    type: str = "string"
    priority: int = 0

    def render(self) -> Json:
        """Describe it to the client."""
        form = {"format": "name"} if self.name == "Name" else {"format": ""}
        return {"name": self.name, "type": self.type, "description": "", "priority": self.priority, **form}


def wanted(accept: str) -> bool:
    """Say whether an Accept header prefers a table, as kubectl's does."""
    return "as=Table" in accept.split(",", maxsplit=1)[0]


def render(kind: Kind, objects: Iterable[Json], metadata: Json, now: float) -> Json:
    """Write the table of some objects of one kind. Each row carries its object's metadata and no more."""
    columns = _columns(kind, now)
    rows = [
        {
            "cells": [column.cell(obj) for column in columns],
            "object": {
                "kind": "PartialObjectMetadata",
                "apiVersion": "meta.k8s.io/v1",
                "metadata": obj.get("metadata", {}),
            },
        }
        for obj in objects
    ]
    definitions = [column.render() for column in columns]
    head = {"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata}
    return {**head, "columnDefinitions": definitions, "rows": rows}


def _columns(kind: Kind, now: float) -> list[Column]:
    age = Column("Age", lambda obj: _age(_at(obj, "metadata.creationTimestamp"), now))
    if kind.columns:
        shown = [_own(column, now) for column in kind.columns]
        return [_NAME, *shown, *([] if any(column.name == "Age" for column in shown) else [age])]
    own = _BUILT_IN.get(kind.resource, ())
    narrow = [column for column in own if column.priority == 0]
    return [_NAME, *narrow, age, *(column for column in own if column.priority)]


def _own(column: Json, now: float) -> Column:
    """A column of a custom resource definition."""
    query = _query(f"${column['jsonPath']}")

    def cell(obj: Json) -> Any:
        found = query.find_one(obj)
        value = None if found is None else found.value
        return _age(value, now) if column.get("type") == "date" else value

    kind = "string" if column.get("type") == "date" else column.get("type", "string")
    return Column(column["name"], cell, kind, column.get("priority", 0))


@functools.cache
def _query(path: str) -> jsonpath_rfc9535.JSONPathQuery:
    return jsonpath_rfc9535.compile(path)


def _at(obj: Any, path: str) -> Any:
    for name in path.split("."):
        obj = obj.get(name) if isinstance(obj, dict) else None
    return obj


def _age(timestamp: Any, now: float) -> str:
    """As kubectl writes durations: two units at most, the second one while it matters."""
    try:
        then = dt.datetime.fromisoformat(str(timestamp)).timestamp()
    except ValueError:
        return "<unknown>"
    seconds = max(0, int(now - then))
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if seconds < 120:
        return f"{seconds}s"
    if minutes < 10:
        return f"{minutes}m{seconds % 60}s" if seconds % 60 else f"{minutes}m"
    if minutes < 180:
        return f"{minutes}m"
    return f"{hours}h" if hours < 48 else f"{days}d"


def _ready(obj: Json) -> str:
    statuses = _at(obj, "status.containerStatuses") or []
    return f"{sum(bool(one.get('ready')) for one in statuses)}/{len(_at(obj, 'spec.containers') or [])}"


def _pod_status(obj: Json) -> str:
    if _at(obj, "metadata.deletionTimestamp"):
        return "Terminating"
    for one in _at(obj, "status.containerStatuses") or []:
        reason = _at(one, "state.waiting.reason") or _at(one, "state.terminated.reason")
        if reason:
            return str(reason)
    return str(_at(obj, "status.reason") or _at(obj, "status.phase") or "Unknown")


def _restarts(obj: Json) -> str:
    return str(sum(int(one.get("restartCount") or 0) for one in _at(obj, "status.containerStatuses") or []))


def _external(obj: Json) -> str:
    if _at(obj, "spec.type") != "LoadBalancer":
        return "<none>"
    found = [one.get("ip") or one.get("hostname") for one in _at(obj, "status.loadBalancer.ingress") or []]
    return ",".join(filter(None, found)) or "<pending>"


def _ports(obj: Json) -> str:
    ports = _at(obj, "spec.ports") or []
    return ",".join(f"{one['port']}/{one.get('protocol', 'TCP')}" for one in ports) or "<none>"


def _node_status(obj: Json) -> str:
    conditions = {one["type"]: one["status"] for one in _at(obj, "status.conditions") or []}
    return "Ready" if conditions.get("Ready") == "True" else "NotReady"


def _involved(obj: Json) -> str:
    about = obj.get("involvedObject") or {}
    return f"{str(about.get('kind', '')).lower()}/{about.get('name', '')}"


def _count(path: str) -> Cell:
    return lambda obj: int(_at(obj, path) or 0)


def _text(path: str, without: str = "<none>") -> Cell:
    return lambda obj: str(_at(obj, path) or without)


def _size(path: str) -> Cell:
    return lambda obj: len(_at(obj, path) or ())


def _of_wanted(ready: str, wanted: str) -> Cell:
    return lambda obj: f"{_at(obj, ready) or 0}/{_at(obj, wanted) or 0}"


_NAME = Column("Name", lambda obj: _at(obj, "metadata.name"))
_BUILT_IN: dict[str, tuple[Column, ...]] = {
    "pods": (
        Column("Ready", _ready),
        Column("Status", _pod_status),
        Column("Restarts", _restarts),
        Column("IP", _text("status.podIP"), priority=1),
        Column("Node", _text("spec.nodeName"), priority=1),
    ),
    "deployments.apps": (
        Column("Ready", _of_wanted("status.readyReplicas", "spec.replicas")),
        Column("Up-to-date", _count("status.updatedReplicas"), "integer"),
        Column("Available", _count("status.availableReplicas"), "integer"),
    ),
    "replicasets.apps": (
        Column("Desired", _count("spec.replicas"), "integer"),
        Column("Current", _count("status.replicas"), "integer"),
        Column("Ready", _count("status.readyReplicas"), "integer"),
    ),
    "daemonsets.apps": (
        Column("Desired", _count("status.desiredNumberScheduled"), "integer"),
        Column("Current", _count("status.currentNumberScheduled"), "integer"),
        Column("Ready", _count("status.numberReady"), "integer"),
        Column("Up-to-date", _count("status.updatedNumberScheduled"), "integer"),
        Column("Available", _count("status.numberAvailable"), "integer"),
    ),
    "services": (
        Column("Type", _text("spec.type")),
        Column("Cluster-IP", _text("spec.clusterIP")),
        Column("External-IP", _external),
        Column("Port(s)", _ports),
    ),
    "nodes": (
        Column("Status", _node_status),
        Column("Roles", lambda _: "<none>"),
        Column("Version", _text("status.nodeInfo.kubeletVersion")),
    ),
    "namespaces": (Column("Status", _text("status.phase")),),
    "configmaps": (Column("Data", _size("data"), "integer"),),
    "secrets": (Column("Type", _text("type")), Column("Data", _size("data"), "integer")),
    "events": (
        Column("Type", _text("type")),
        Column("Reason", _text("reason")),
        Column("Object", _involved),
        Column("Message", _text("message")),
    ),
    "leases.coordination.k8s.io": (Column("Holder", _text("spec.holderIdentity")),),
}
