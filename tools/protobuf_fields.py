"""Writes the fields of Kubernetes' protobuf messages that the lab's embedded API reads: `protobuf_fields.py API META`.

API and META are unpacked sources of the Go modules k8s.io/api and k8s.io/apimachinery (`go mod download -json`).
Numbers and types come from their `generated.proto` files. Which fields a JSON object does not nest (`inline`), and
which tell "absent" from zero (pointers), the tags in `types.go` say. `podidentity_lab.kubernetes.protobuf` says how to
read the lines.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

TARGET = Path(__file__).parent.parent / "lab/src/podidentity_lab/data/protobuf-fields.txt"
GROUPS = (
    *("core", "apps", "autoscaling", "batch", "coordination", "networking", "policy", "rbac", "scheduling"),
    *("admissionregistration", "authentication", "authorization"),
)
ROOTS = frozenset(
    [
        "Namespace",
        "Node",
        "Pod",
        "Service",
        "Endpoints",
        "Secret",
        "ConfigMap",
        "ServiceAccount",
        "Event",
        "Deployment",
        "ReplicaSet",
        "DaemonSet",
        "Job",
        "CronJob",
        "Lease",
        "NetworkPolicy",
        "PodDisruptionBudget",
        "Role",
        "RoleBinding",
        "ClusterRole",
        "ClusterRoleBinding",
        "PriorityClass",
        "MutatingWebhookConfiguration",
        "Scale",
        "Binding",
        "Eviction",
        "DeleteOptions",
        "TokenRequest",
        "TokenReview",
        "SubjectAccessReview",
        "SelfSubjectAccessReview",
        "Unknown",
    ]
)
_MESSAGE = re.compile(r"^message (\w+) \{(.*?)^\}", re.MULTILINE | re.DOTALL)
_FIELD = re.compile(r"^\s*(?:(optional|repeated) ([\w.]+)|map<string, ([\w.]+)>) (\w+) = (\d+);", re.MULTILINE)
_STRUCT = re.compile(r"^type (\w+) struct \{(.*?)^\}", re.MULTILINE | re.DOTALL)
_TAG = re.compile(r"^\t(?:\w+ +)?(\S+)\s+`json:\"([^\"]*)\" protobuf:\"\w+,\d+,\w+,(?:\w+,)*name=(\w+)", re.MULTILINE)
Fields = dict[int, str]


def main(api: Path, machinery: Path) -> None:
    """Write the file."""
    folders = [api / group / "v1" for group in GROUPS]
    folders += [machinery / "pkg" / name for name in ("runtime", "apis/meta/v1", "api/resource", "util/intstr")]
    messages: dict[str, Fields] = {}
    for folder in folders:
        for name, fields in read(folder):
            messages.setdefault(name, fields)  # of two that are called alike, the first is meant
    lines = [f"{name} {_line(messages[name])}".rstrip() for name in sorted(reached(messages))]
    TARGET.write_text("\n".join(lines) + "\n")


def read(folder: Path) -> Iterator[tuple[str, Fields]]:
    """Yield the messages of one package: name, and its fields by number."""
    tags = dict(_tags(folder))
    for name, body in _MESSAGE.findall((folder / "generated.proto").read_text()):
        fields: Fields = {}
        for label, kind, value, field, number in _FIELD.findall(body):
            pointer, inline, json_name = tags.get((name, field), ("", "", ""))
            mark = "%" if value else "*" if label == "repeated" else pointer
            fields[int(number)] = f"{inline}{json_name or field}:{mark}{(value or kind).rpartition('.')[2]}"
        yield name, fields


def _tags(folder: Path) -> Iterator[tuple[tuple[str, str], tuple[str, str, str]]]:
    """Yield message and field; and `?` for a pointer, `+` for what is part of the object around it, its JSON name."""
    for path in folder.glob("*types*.go"):
        for struct, body in _STRUCT.findall(path.read_text()):
            for kind, json_name, field in _TAG.findall(body):
                name = json_name.partition(",")[0].replace("-", "")
                yield (struct, field), ("?" * kind.startswith("*"), "+" * json_name.startswith(","), name)


def reached(messages: dict[str, Fields]) -> set[str]:
    """Return the messages that the roots consist of."""
    names: set[str] = set()
    queue = set(ROOTS)
    while queue:
        name = queue.pop()
        names.add(name)
        kinds = {field.partition(":")[2].lstrip("*%?") for field in messages[name].values()}
        queue |= (kinds & messages.keys()) - names
    return names


def _line(fields: Fields) -> str:
    return " ".join(fields.get(number, "-") for number in range(1, max(fields, default=0) + 1))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
