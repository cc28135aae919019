"""What the pods of NMI and MIC have in common: hardening, probes, ports, environment. Called by `nmi` and `mic`."""

from deployment.settings import Json

NOBODY = 65532
LINUX: Json = {"kubernetes.io/os": "linux"}
EVERYWHERE: list[Json] = [{"operator": "Exists"}]


def locked_down(*capabilities: str) -> Json:
    """A container's security context: uid 0 with these capabilities alone, nothing writable, no way to more."""
    allowed: Json = {"add": list(capabilities)} if capabilities else {}
    return {
        "runAsUser": 0,
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"], **allowed},
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def unprivileged() -> Json:
    """The same for a container that is nobody in particular."""
    return {**locked_down(), "runAsUser": NOBODY, "runAsNonRoot": True}


def from_field(name: str, path: str) -> Json:
    """An environment variable from the pod's own fields."""
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}


def from_secret(name: str, secret: str, key: str, *, optional: bool = False) -> Json:
    """An environment variable from a key of a Secret."""
    reference: Json = {"name": secret, "key": key}
    if optional:
        reference["optional"] = True
    return {"name": name, "valueFrom": {"secretKeyRef": reference}}


def port(name: str, number: int) -> Json:
    """A named port."""
    return {"name": name, "containerPort": number, "protocol": "TCP"}


def probes(number: int) -> Json:
    """Liveness as upstream has it; readiness says when the daemon can do its work. A busy node is given time."""
    return {
        "livenessProbe": _probe(
            "/healthz", number, {"initialDelaySeconds": 10, "periodSeconds": 5, "timeoutSeconds": 5}
        ),
        "readinessProbe": _probe("/readyz", number, {"periodSeconds": 2, "timeoutSeconds": 5}),
    }


def resources(*, cpu: str, memory: str, memory_limit: str) -> Json:
    """Requests, and a limit of memory only: a limit of CPU would delay tokens."""
    return {"requests": {"cpu": cpu, "memory": memory}, "limits": {"memory": memory_limit}}


def host_path(name: str, path: str, kind: str) -> Json:
    """A volume of the node."""
    return {"name": name, "hostPath": {"path": path, "type": kind}}


def mount(name: str, path: str) -> Json:
    """A volume's place in the container, read-only."""
    return {"name": name, "mountPath": path, "readOnly": True}


def _probe(path: str, number: int, timing: Json) -> Json:
    return {"httpGet": {"path": path, "port": number}, **timing}
