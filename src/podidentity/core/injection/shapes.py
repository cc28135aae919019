"""The form of the objects that are reviewed: the fields that are read, of what is sent by whoever connects.

kubernetes.io/docs/reference/kubernetes-api. All of an object's other fields are left as they are.
"""

import msgspec

WORKLOADS = frozenset(
    {"Job", "CronJob", "Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "ReplicationController"}
)
"""Kinds with a pod template."""


class _Item(msgspec.Struct):
    name: str | None = None


class _Mount(_Item, rename="camel"):
    mount_path: str | None = None


class _Container(_Item, rename="camel"):
    env: list[_Item] | None = None
    volume_mounts: list[_Mount] | None = None


class _Meta(_Item, rename="camel"):
    generate_name: str | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None


class _PodSpec(msgspec.Struct, rename="camel"):
    service_account_name: str | None = None
    volumes: list[_Item] | None = None
    init_containers: list[_Container] | None = None
    containers: list[_Container] | None = None
    os: _Item | None = None


class _Pod(msgspec.Struct):
    metadata: _Meta | None = None
    spec: _PodSpec | None = None


class _Template(msgspec.Struct):
    metadata: _Meta | None = None


class _JobTemplate(msgspec.Struct):
    spec: "_WorkloadSpec | None" = None


class _WorkloadSpec(msgspec.Struct, rename="camel"):
    template: _Template | None = None
    job_template: _JobTemplate | None = None


class _Workload(msgspec.Struct):
    metadata: _Meta | None = None
    spec: _WorkloadSpec | None = None


class _Account(msgspec.Struct):
    metadata: _Meta | None = None


def shape_of(kind: object) -> type[msgspec.Struct]:
    """Return the form of a kind's objects, for `msgspec.convert`."""
    if kind == "Pod":
        return _Pod
    return _Workload if kind in WORKLOADS else _Account
