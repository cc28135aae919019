"""What `kubectl` asks before anything else: groups and resources."""

from typing import Any

from podidentity_lab.kubernetes import openapi
from podidentity_lab.kubernetes.kinds import VERBS, Kind, Kinds

VERSION = {
    "major": "1",
    "minor": "36",
    "gitVersion": "v1.36.0+podidentity-lab",
    "gitCommit": "",
    "gitTreeState": "clean",
    "buildDate": "2026-01-01T00:00:00Z",
    "goVersion": "none",
    "compiler": "CPython",
    "platform": "linux/amd64",
}
Json = dict[str, Any]
_OTHER_KINDS: dict[str, Json] = {
    "eviction": {"group": "policy", "version": "v1", "kind": "Eviction", "verbs": ["create"]},
    "binding": {"kind": "Binding", "verbs": ["create"]},
    "token": {"group": "authentication.k8s.io", "version": "v1", "kind": "TokenRequest", "verbs": ["create"]},
    "scale": {"group": "autoscaling", "version": "v1", "kind": "Scale"},
    "exec": {"kind": "PodExecOptions", "verbs": ["create", "get"]},
    "attach": {"kind": "PodAttachOptions", "verbs": ["create", "get"]},
    "log": {"verbs": ["get"]},
}
"""Subresources whose objects are of a kind of their own, or that not every verb reaches."""


def document(kinds: Kinds, path: str) -> Json | None:
    """Return the answer to a discovery path, which has no leading slash here; None for any other path."""
    if path == "version":
        return VERSION
    if path == "api":
        return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}
    if path == "apis":
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": _groups(kinds)}
    if path == "openapi/v3":
        places = sorted({kind.path for kind in kinds})
        return {"paths": {place: {"serverRelativeURL": f"/openapi/v3/{place}"} for place in places}}
    if path.startswith("openapi/v3/"):
        matching = [kind for kind in kinds if kind.path == path.removeprefix("openapi/v3/")]
        return openapi.document(matching, VERSION["gitVersion"]) if matching else None
    matching = [kind for kind in kinds if kind.path == path]
    return _resources(matching) if matching else None


def _groups(kinds: Kinds) -> list[Json]:
    groups: dict[str, list[Json]] = {}
    for kind in kinds:
        version = {"groupVersion": kind.api_version, "version": kind.version}
        if kind.group and version not in groups.setdefault(kind.group, []):
            groups[kind.group].append(version)
    return [{"name": name, "versions": versions, "preferredVersion": versions[0]} for name, versions in groups.items()]


def _resources(kinds: list[Kind]) -> Json:
    resources: list[Json] = []
    for kind in kinds:
        common = {"singularName": kind.kind.lower(), "namespaced": kind.namespaced, "kind": kind.kind}
        resources.append({"name": kind.plural, **common, "verbs": list(VERBS), "shortNames": list(kind.short)})
        if kind.in_all:
            resources[-1]["categories"] = ["all"]
        resources += [
            {"name": f"{kind.plural}/{sub}", **common, "verbs": ["get", "patch", "update"], **_OTHER_KINDS.get(sub, {})}
            for sub in kind.subresources
        ]
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": kinds[0].api_version,
        "resources": resources,
    }
