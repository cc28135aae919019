"""A release of aad-pod-identity's own chart as Helm 3 left it: its objects, and the Secret in which Helm keeps it.

Written from facts about the chart (names, selectors, labels) and about Helm's storage, for tests that begin with such a
release.
"""

import base64
import copy
import gzip
import json
from datetime import UTC, datetime

import upstreams
from upstreams import Json

CHART = "aad-pod-identity"
VERSION = "4.1.18"
APP_VERSION = "1.8.17"
RBAC = "rbac.authorization.k8s.io"


def objects(release: str, namespace: str, image: str, command: list[str]) -> list[Json]:
    """Return the objects of the release. `image` and `command` replace its binaries; nobody answers its probes."""
    rights = {"nmi": upstreams.NMI_RIGHTS, "mic": upstreams.MIC_RIGHTS}
    made = [one for part, granted in rights.items() for one in _roles(part, namespace, granted)]
    made += [_workload(part, release, namespace, image, command) for part in rights]
    exception = {"podLabels": {"app.kubernetes.io/component": "mic"}}
    made.append(
        {
            "apiVersion": f"{upstreams.GROUP}/v1",
            "kind": "AzurePodIdentityException",
            "metadata": {"name": "mic-exception", "namespace": namespace},
            "spec": exception,
        }
    )
    return [_owned(one, release, namespace) for one in made]


def secret(release: str, namespace: str, kept: list[Json], values: Json) -> Json:
    """Return Helm's record of the release's first revision (`helm.sh/helm/v3`, pkg/storage/driver and pkg/release)."""
    now = datetime.now(UTC).isoformat()
    info = {"first_deployed": now, "last_deployed": now, "deleted": "", "description": "Install complete"}
    metadata = {"apiVersion": "v1", "name": CHART, "version": VERSION, "appVersion": APP_VERSION}
    record = {
        "name": release,
        "namespace": namespace,
        "version": 1,
        "info": {**info, "status": "deployed"},
        "chart": {"metadata": metadata, "lock": None, "templates": [], "values": {}, "schema": None, "files": []},
        "config": values,
        "manifest": "".join(f"---\n{json.dumps(one)}\n" for one in kept),
    }
    packed = base64.b64encode(gzip.compress(json.dumps(record).encode()))
    labels = {"name": release, "owner": "helm", "status": "deployed", "version": "1"}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "helm.sh/release.v1",
        "metadata": {"name": f"sh.helm.release.v1.{release}.v1", "namespace": namespace, "labels": labels},
        "data": {"release": base64.b64encode(packed).decode()},
    }


def _roles(part: str, namespace: str, rights: tuple[tuple[str, str, str], ...]) -> list[Json]:
    name = f"{CHART}-{part}"
    account = {"name": name, "namespace": namespace}
    role, bound = ({"apiVersion": f"{RBAC}/v1", "kind": kind, "metadata": {"name": name}} for kind in _CLUSTER_WIDE)
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": account},
        role | {"rules": upstreams.rules(rights)},
        bound
        | {
            "subjects": [{"kind": "ServiceAccount", **account}],
            "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": name},
        },
    ]


_CLUSTER_WIDE = ("ClusterRole", "ClusterRoleBinding")


def _workload(part: str, release: str, namespace: str, image: str, command: list[str]) -> Json:
    made = upstreams.daemon_set(image) if part == "nmi" else upstreams.deployment(image)
    selected = {
        "app.kubernetes.io/name": CHART,
        "app.kubernetes.io/instance": release,
        "app.kubernetes.io/component": part,
    }
    made["metadata"] = {"name": f"{CHART}-{part}", "namespace": namespace}
    made["spec"]["selector"] = {"matchLabels": selected}
    template = made["spec"]["template"]
    template["metadata"]["labels"] = selected | _labels(release)
    template["spec"]["serviceAccountName"] = f"{CHART}-{part}"
    container = template["spec"]["containers"][0]
    container["command"] = command
    del container["livenessProbe"]
    return made


def _labels(release: str) -> dict[str, str]:
    return {
        "app.kubernetes.io/name": CHART,
        "app.kubernetes.io/instance": release,
        "app.kubernetes.io/managed-by": "Helm",
        "app.kubernetes.io/version": APP_VERSION,
        "helm.sh/chart": f"{CHART}-{VERSION}",
    }


def _owned(obj: Json, release: str, namespace: str) -> Json:
    """Return an object with the marks by which Helm recognizes its own."""
    made = copy.deepcopy(obj)
    made["metadata"]["labels"] = _labels(release)
    made["metadata"]["annotations"] = {
        "meta.helm.sh/release-name": release,
        "meta.helm.sh/release-namespace": namespace,
    }
    return made
