"""What `kubectl` asks before anything else: groups, resources and schemas.

The OpenAPI v3 documents say that each kind takes `fieldValidation`: kubectl then leaves validation to the server.
"""

from typing import Any

from podidentity.lab.kubernetes.kinds import VERBS, Kind, Kinds

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


def document(kinds: Kinds, path: str) -> Json | None:
    """The answer to a discovery path, without its leading slash; None when it is no such path."""
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
        return _openapi([kind for kind in kinds if kind.path == path.removeprefix("openapi/v3/")])
    served = [kind for kind in kinds if kind.path == path]
    return _resources(served) if served else None


def _groups(kinds: Kinds) -> list[Json]:
    found: dict[str, list[Json]] = {}
    for kind in kinds:
        version = {"groupVersion": kind.api_version, "version": kind.version}
        if kind.group and version not in found.setdefault(kind.group, []):
            found[kind.group].append(version)
    return [{"name": name, "versions": versions, "preferredVersion": versions[0]} for name, versions in found.items()]


def _resources(served: list[Kind]) -> Json:
    resources: list[Json] = []
    for kind in served:
        common = {"singularName": kind.kind.lower(), "namespaced": kind.namespaced, "kind": kind.kind}
        resources.append({"name": kind.plural, **common, "verbs": list(VERBS), "shortNames": list(kind.short)})
        resources += [
            {"name": f"{kind.plural}/{sub}", **common, "verbs": ["get", "patch", "update"]} for sub in kind.subresources
        ]
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": served[0].api_version,
        "resources": resources,
    }


def _openapi(served: list[Kind]) -> Json | None:
    if not served:
        return None
    paths = {}
    for kind in served:
        place = f"/{kind.path}/{'namespaces/{namespace}/' if kind.namespaced else ''}{kind.plural}/{{name}}"
        operation = {
            "operationId": f"patch{kind.kind}",
            "parameters": [{"name": "fieldValidation", "in": "query", "schema": {"type": "string"}}],
            "responses": {"200": {"description": "OK"}},
            "x-kubernetes-group-version-kind": {"group": kind.group, "version": kind.version, "kind": kind.kind},
        }
        paths[place] = {"patch": operation}
    return {"openapi": "3.0.0", "info": {"title": "podidentity lab", "version": VERSION["gitVersion"]}, "paths": paths}
