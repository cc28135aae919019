"""What a trial creates in the cluster: a namespace, an identity and its binding, and two pods that ask for tokens."""

import json
from dataclasses import dataclass
from typing import Any

from podidentity.core.model.allow_list import ANNOTATION
from podidentity.core.model.identities import POD_LABEL, ObjectKey

Json = dict[str, Any]

ASKING_SECONDS = 240
"""How long the pod that has a binding asks: a scale set takes a minute, a busy one longer."""
PROGRAM = r"""
import base64, json, sys, time, urllib.error, urllib.request

base, seconds = "http://169.254.169.254/metadata/identity/oauth2/token?api-version=2018-02-01", float(sys.argv[2])


def ask(headers):
    request = urllib.request.Request(f"{base}&resource={sys.argv[1]}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=100) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, {"error": error.read(2000).decode(errors="replace")}
    except OSError as error:
        return 0, {"error": str(error)}


start = time.monotonic()
while True:
    status, body = ask({"Metadata": "true"})
    passed = time.monotonic() - start
    if status == 200 or passed >= seconds:
        break
    time.sleep(1)
claims = {}
if status == 200:
    part = body["access_token"].split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
result = {"status": status, "client_id": claims.get("appid") or claims.get("azp") or "", "seconds": round(passed, 1)}
print(json.dumps({**result, "error": body.get("error", ""), "without_header": ask({})[0]}))
"""
"""Runs in NMI's own image, which has a Python. The token never leaves the pod: only whose it is."""


@dataclass(frozen=True, slots=True)
class Names:
    """What everything is called: `name` is new for each trial, so that two do not meet."""

    name: str

    @property
    def asking_pod(self) -> ObjectKey:
        """The pod that has a binding."""
        return ObjectKey(self.name, "bound")

    @property
    def other_pod(self) -> ObjectKey:
        """The pod that has none."""
        return ObjectKey(self.name, "unbound")


@dataclass(frozen=True, slots=True)
class PodAnswer:
    """What a pod was answered: the HTTP status (0: no answer), and of a token only whose it is.

    `seconds` passed until the answer. `without_header` is the status of a request without `Metadata: true`.
    """

    status: int
    client_id: str
    seconds: float
    error: str
    without_header: int


def read_answer(log: str) -> PodAnswer | None:
    """Return what a pod wrote; None when it is not its answer."""
    try:
        return PodAnswer(**json.loads(log.strip().splitlines()[-1]))
    except (IndexError, ValueError, TypeError):
        return None


def namespace(names: Names, resource_id: str) -> Json:
    """Return the trial's namespace; it is allowed its identity, where namespaces have to be."""
    labels = {"app.kubernetes.io/managed-by": "podidentity-verify"}
    return {"metadata": {"name": names.name, "labels": labels, "annotations": {ANNOTATION: resource_id}}}


def identity(names: Names, resource_id: str, client_id: str) -> Json:
    """Return the AzureIdentity."""
    spec = {"type": 0, "resourceID": resource_id, "clientID": client_id}
    return {"metadata": {"name": names.name, "namespace": names.name}, "spec": spec}


def binding(names: Names) -> Json:
    """Return the AzureIdentityBinding."""
    spec = {"azureIdentity": names.name, "selector": names.name}
    return {"metadata": {"name": names.name, "namespace": names.name}, "spec": spec}


def pod(key: ObjectKey, image: str, audience: str, *, selector: str, node: str = "") -> Json:
    """Return a pod that asks and ends; with an empty selector it has no label, and asks once. `node`: where it runs."""
    seconds = ASKING_SECONDS if selector else 0
    container = {
        "name": "ask",
        "image": image,
        "command": ["python3", "-c", PROGRAM, audience, str(seconds)],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"memory": "64Mi"}},
    }
    metadata: Json = {"name": key.name, "namespace": key.namespace, "labels": {POD_LABEL: selector} if selector else {}}
    security = {"runAsNonRoot": True, "runAsUser": 65534, "seccompProfile": {"type": "RuntimeDefault"}}
    spec: Json = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "securityContext": security,
        "containers": [container],
    }
    return {"metadata": metadata, "spec": spec | ({"nodeName": node} if node else {})}
