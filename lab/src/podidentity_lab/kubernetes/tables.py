"""Objects as the tables that `kubectl get` prints: columns and cells of each kind, made on the server.

Custom resources have the columns of their definition (`additionalPrinterColumns`), built-in kinds those below; every
other kind has name and age. Form: `meta.k8s.io/v1` Table.
"""

import datetime as dt
import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import jsonpath_rfc9535

from podidentity_lab.kubernetes.kinds import Kind

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
        """Return the column's definition in a Table."""
        form = {"format": "name"} if self.name == "Name" else {"format": ""}
        return {"name": self.name, "type": self.type, "description": "", "priority": self.priority, **form}


def is_table_preferred(accept: str) -> bool:
    """Whether an Accept header prefers a table, as kubectl's does."""
    return "as=Table" in accept.split(",", maxsplit=1)[0]


def render(kind: Kind, objects: Iterable[Json], metadata: Json, now: float) -> Json:
    """Return the table of some objects of one kind. Each row carries its object's metadata and no more of it."""
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
    age = Column("Age", lambda obj: _age(_value_at(obj, "metadata.creationTimestamp"), now))
    if kind.columns:
        columns = [_column(column, now) for column in kind.columns]
        return [_NAME, *columns, *([] if any(column.name == "Age" for column in columns) else [age])]
    built_in = _BUILT_IN.get(kind.resource, ())
    narrow = [column for column in built_in if column.priority == 0]
    return [_NAME, *narrow, age, *(column for column in built_in if column.priority)]


def _column(column: Json, now: float) -> Column:
    """Return a column that a custom resource definition defines."""
    query = _query(f"${column['jsonPath']}")

    def cell(obj: Json) -> Any:
        match = query.find_one(obj)
        value = None if match is None else match.value
        return _age(value, now) if column.get("type") == "date" else value

    kind = "string" if column.get("type") == "date" else column.get("type", "string")
    return Column(column["name"], cell, kind, column.get("priority", 0))


@functools.cache
def _query(path: str) -> jsonpath_rfc9535.JSONPathQuery:
    return jsonpath_rfc9535.compile(path)


def _value_at(obj: Any, path: str) -> Any:
    for name in path.split("."):
        obj = obj.get(name) if isinstance(obj, dict) else None
    return obj


def _age(timestamp: Any, now: float) -> str:
    """Return the age of a timestamp as kubectl writes durations: two units at most, the second one while it matters."""
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
    statuses = _value_at(obj, "status.containerStatuses") or []
    return f"{sum(bool(status.get('ready')) for status in statuses)}/{len(_value_at(obj, 'spec.containers') or [])}"


def _pod_status(obj: Json) -> str:
    if _value_at(obj, "metadata.deletionTimestamp"):
        return "Terminating"
    for status in _value_at(obj, "status.containerStatuses") or []:
        reason = _value_at(status, "state.waiting.reason") or _value_at(status, "state.terminated.reason")
        if reason:
            return str(reason)
    return str(_value_at(obj, "status.reason") or _value_at(obj, "status.phase") or "Unknown")


def _restarts(obj: Json) -> str:
    return str(sum(int(status.get("restartCount") or 0) for status in _value_at(obj, "status.containerStatuses") or []))


def _job_status(obj: Json) -> str:
    outcomes = [
        item["type"] for item in _value_at(obj, "status.conditions") or [] if item["type"] in {"Complete", "Failed"}
    ]
    return str(outcomes[0]) if outcomes else "Running"


def _external(obj: Json) -> str:
    if _value_at(obj, "spec.type") != "LoadBalancer":
        return "<none>"
    points = _value_at(obj, "status.loadBalancer.ingress") or []
    addresses = [point.get("ip") or point.get("hostname") for point in points]
    return ",".join(filter(None, addresses)) or "<pending>"


def _ports(obj: Json) -> str:
    ports = _value_at(obj, "spec.ports") or []
    return ",".join(f"{port['port']}/{port.get('protocol', 'TCP')}" for port in ports) or "<none>"


def _node_status(obj: Json) -> str:
    conditions = {condition["type"]: condition["status"] for condition in _value_at(obj, "status.conditions") or []}
    return "Ready" if conditions.get("Ready") == "True" else "NotReady"


def _event_subject(obj: Json) -> str:
    subject = obj.get("involvedObject") or {}
    return f"{str(subject.get('kind', '')).lower()}/{subject.get('name', '')}"


def _count(path: str) -> Cell:
    return lambda obj: int(_value_at(obj, path) or 0)


def _text(path: str, without: str = "<none>") -> Cell:
    return lambda obj: str(_value_at(obj, path) or without)


def _size(path: str) -> Cell:
    return lambda obj: len(_value_at(obj, path) or ())


def _ratio(ready: str, desired: str) -> Cell:
    return lambda obj: f"{_value_at(obj, ready) or 0}/{_value_at(obj, desired) or 0}"


_NAME = Column("Name", lambda obj: _value_at(obj, "metadata.name"))
_BUILT_IN: dict[str, tuple[Column, ...]] = {
    "pods": (
        Column("Ready", _ready),
        Column("Status", _pod_status),
        Column("Restarts", _restarts),
        Column("IP", _text("status.podIP"), priority=1),
        Column("Node", _text("spec.nodeName"), priority=1),
    ),
    "deployments.apps": (
        Column("Ready", _ratio("status.readyReplicas", "spec.replicas")),
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
    "jobs.batch": (
        Column("Status", _job_status),
        Column("Completions", _ratio("status.succeeded", "spec.completions")),
    ),
    "cronjobs.batch": (
        Column("Schedule", _text("spec.schedule")),
        Column("Timezone", _text("spec.timeZone")),
        Column("Suspend", lambda obj: str(bool(_value_at(obj, "spec.suspend")))),
        Column("Active", _size("status.active"), "integer"),
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
        Column("Object", _event_subject),
        Column("Message", _text("message")),
    ),
    "leases.coordination.k8s.io": (Column("Holder", _text("spec.holderIdentity")),),
}
