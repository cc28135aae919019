"""The lab beside programs that do a part of what it does: start, memory, and requests a second. `make bench` runs it.

kube-apiserver with etcd for the Kubernetes API, Azurite for blobs, and moto for a cloud's lists and secrets: ARM's
identities beside IAM's roles, Key Vault beside Secrets Manager. They answer over TLS, but for moto: it closes each
connection after an answer, and would be measured by its handshakes. The lab's Azure is reached through the lab's proxy,
as from a user's shell, and checks tokens and roles; Azurite looks at a token without checking its signature, and moto
at none. Azurite is installed with npm.

A round starts each program afresh. A client then sends the same number of requests to the lab and to the other, turn by
turn, one after the other, on a connection that stays open where the server lets it. Ratios are of times: 2 is twice as
long as the other needs.

Before that comes the lab's page (`lab_page`). What cannot be measured here, because a program is missing, is said on
standard error, and the rest is measured; rounds end after `--limit` seconds.
"""

import argparse
import contextlib
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import emulators
import lab_page
from emulators import BLOB_ACCOUNT, BLOB_HEADERS, Call, Endpoint, aws_headers, azure_endpoint, iam
from interop.clients import MissingToolError
from podidentity.errors import LabError
from podidentity_lab.demo.admin import Admin
from results import print_result, spread

GROUP, NAME, VAULT, ACCOUNT, LOCATION = "bench", "bench", "benchvault", "benchstore", "westeurope"
OBJECTS, IDENTITIES, TURNS, WARM_UP = 20, 10, 5, 20
CONTENT = bytes(range(256)) * 16
ARM_VERSION = "2023-01-31"
POLICY = quote(json.dumps({"Version": "2012-10-17", "Statement": []}))
JSON = {"Content-Type": "application/json"}
BUDGET = {
    "page: answers that are neither shown nor counted": 0,
    "page: loops for 1,000 answers": 15.0,
    "page: loops of the browser for 1,000 answers": 100.0,
    "page: elements": 10_000,
    "ready_over_all": 1.0,
    "idle_mib_over_all": 0.5,
    "mib_over_all": 0.5,
    f"list {OBJECTS} ConfigMaps over kube-apiserver": 2.0,
    "get a ConfigMap over kube-apiserver": 1.5,
    "create a ConfigMap over kube-apiserver": 4.0,
    "put a blob over azurite": 1.5,
    "get a blob over azurite": 1.5,
    f"list {IDENTITIES} identities over moto": 1.0,
    "get a secret over moto": 1.0,
}
"""The largest values that are within the budget of docs/performance.md. `all`: what the other three need together."""
PAGE_SECONDS = 10.0

Make = Callable[[int], Call]
"""Makes a request; each has a number of its own."""


class Operation(NamedTuple):
    """What is asked of the lab and of another program, whose name is `reference`."""

    name: str
    reference: str
    lab: tuple[Endpoint, Make]
    other: tuple[Endpoint, Make]


class Round(NamedTuple):
    """What a round showed: by program, seconds to the first answer and MiB of memory; by operation, seconds."""

    ready_s: Mapping[str, float]
    idle_mib: Mapping[str, float]
    mib: Mapping[str, float]
    seconds: Mapping[str, tuple[float, float]]
    """Of the lab and of the other program."""


Run = Callable[[Path], contextlib.AbstractContextManager[emulators.Emulator]]
REFERENCES: dict[str, Run] = {
    "kube-apiserver": emulators.kube_apiserver,
    "azurite": emulators.azurite,
    "moto": emulators.moto,
}


def main() -> int:
    """Measure and print; exit status 1 when something is over its budget, or could not be measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="how often each program is started")
    parser.add_argument("--requests", type=int, default=500, help="how many of each kind in a round")
    parser.add_argument("--limit", type=float, default=420.0, help="seconds after which no further round begins")
    options = parser.parse_args()
    references, absences = available()
    figures: dict[str, Any] = {}
    try:
        with tempfile.TemporaryDirectory() as folder:
            figures["page"] = lab_page.measure(Path(folder), PAGE_SECONDS)
    except (AssertionError, MissingToolError) as error:
        absences.append(f"the lab's page: {error}")
    figures |= summary(measure_rounds(options, references), references)
    for absence in absences:
        print(f"not measured: {absence}", file=sys.stderr, flush=True)
    values = measured_values(figures)
    budget = {name: limit for name, limit in BUDGET.items() if name in values}
    return print_result("lab", figures, budget, values) or (1 if absences else 0)


def available() -> tuple[dict[str, Run], list[str]]:
    """Install what the lab is compared with; return what is there, and a sentence for each program that is not."""
    absences, references = [], dict(REFERENCES)
    for name, prepare in emulators.PREPARATIONS.items():
        try:
            prepare()
        except (MissingToolError, LabError, RuntimeError) as error:
            absences.append(f"{name}: {error}")
            del references[name]
    return references, absences


def measure_rounds(options: argparse.Namespace, references: Mapping[str, Run]) -> list[Round]:
    """Run as many rounds as are wanted and as there is time for, but one at least."""
    start = time.monotonic()
    rounds: list[Round] = []
    while len(rounds) < options.rounds and (not rounds or time.monotonic() - start < options.limit):
        rounds.append(measure(max(options.requests // TURNS, 1), references))
    return rounds


def measured_values(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the budget is about, as far as it was measured, by the budget's names."""
    values = {
        f"{name.rpartition(', ')[0]} over {name.rpartition(', ')[2]}": entry["time over"]
        for name, entry in figures["requests"].items()
    }
    for field in ("ready", "idle_mib", "mib"):
        name = "ready_s" if field == "ready" else field
        if f"{name} over all" in figures:
            values[f"{field}_over_all"] = figures[f"{name} over all"]
    if page := figures.get("page"):
        values["page: answers that are neither shown nor counted"] = page["uncounted"]
        values["page: loops for 1,000 answers"] = page["cpu_over_loop"]
        values["page: loops of the browser for 1,000 answers"] = page["browser_over_loop"]
        values["page: elements"] = page["elements"]
    return values


def measure(count: int, references: Mapping[str, Run]) -> Round:
    """Run a round with `count` requests in each turn."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        lab, variables = stack.enter_context(emulators.lab(make_folder(folder, "lab")))
        programs = {name: stack.enter_context(run(make_folder(folder, name))) for name, run in references.items()}
        idle_mib = {name: program.memory_mib() for name, program in {"lab": lab, **programs}.items()}
        operations: list[Operation] = []
        if program := programs.get("kube-apiserver"):
            operations += kubernetes(lab.endpoints["kubernetes"], program.endpoints[""])
        with contextlib.closing(Admin(variables)) as admin:
            admin.create_group(GROUP, LOCATION)
        if program := programs.get("azurite"):
            operations += blobs(stack, variables, program.endpoints[""])
        if program := programs.get("moto"):
            operations += cloud(stack, variables, lab.endpoints["arm"], program.endpoints[""])
        seconds = {operation: compare(operation, count) for operation in operations}
        programs = {"lab": lab, **programs}
        return Round(
            {name: program.ready_s for name, program in programs.items()},
            idle_mib,
            {name: program.memory_mib() for name, program in programs.items()},
            {f"{operation.name}, {operation.reference}": times for operation, times in seconds.items()},
        )


def make_folder(parent: Path, name: str) -> Path:
    """Make a directory; return its path."""
    path = parent / name
    path.mkdir()
    return path


def compare(operation: Operation, count: int) -> tuple[float, float]:
    """Return the seconds that one request takes at the lab and at the other, which take turns."""
    numbers = itertools.count()
    totals = [0.0, 0.0]
    for turn in range(TURNS):
        for place, (endpoint, make) in enumerate((operation.lab, operation.other)):
            endpoint.close()  # a server closes a connection that was idle during the other's turn
            for _ in range(WARM_UP if turn == 0 else 1):
                endpoint.send(make(next(numbers)))
            calls = [make(next(numbers)) for _ in range(count)]
            start = time.perf_counter()
            for call in calls:
                endpoint.send(call)
            totals[place] += time.perf_counter() - start
    return totals[0] / (TURNS * count), totals[1] / (TURNS * count)


def kubernetes(lab: Endpoint, other: Endpoint) -> list[Operation]:
    """Return what is asked of both Kubernetes APIs: ConfigMaps, of which one namespace has `OBJECTS`."""
    for endpoint in (lab, other):
        endpoint.send(post("/api/v1/namespaces", {"metadata": {"name": NAME}}))
        for number in range(OBJECTS):
            endpoint.send(config_map(NAME, number))
    path = f"/api/v1/namespaces/{NAME}/configmaps"
    operations: dict[str, Make] = {
        f"list {OBJECTS} ConfigMaps": lambda _: Call("GET", path),
        "get a ConfigMap": lambda _: Call("GET", f"{path}/{NAME}-0"),
        "create a ConfigMap": lambda number: config_map("default", number),
    }
    return [Operation(name, "kube-apiserver", (lab, make), (other, make)) for name, make in operations.items()]


def post(path: str, body: Mapping[str, Any], status: int = 201) -> Call:
    """Return a request with JSON."""
    return Call("POST", path, json.dumps(body).encode(), JSON, status)


def config_map(namespace: str, number: int) -> Call:
    """Return the creation of a ConfigMap."""
    body = {"metadata": {"name": f"{NAME}-{number}"}, "data": {"text": "x" * 256}}
    return post(f"/api/v1/namespaces/{namespace}/configmaps", body)


def blobs(stack: contextlib.ExitStack, variables: Mapping[str, str], other: Endpoint) -> list[Operation]:
    """Return what is asked of the lab's Blob Storage and of Azurite's: a blob of 4 KiB."""
    with contextlib.closing(Admin(variables)) as admin:
        account = str(admin.create_account(GROUP, ACCOUNT, LOCATION)["id"])
        admin.assign_role("Storage Blob Data Contributor", admin.owner_principal(), account)
        admin.create_container(GROUP, ACCOUNT, NAME)
    host = f"{ACCOUNT}.blob.core.windows.net"
    lab = azure_endpoint(variables, host, "https://storage.azure.com")
    stack.callback(lab.close)
    other.send(Call("PUT", f"/{BLOB_ACCOUNT}/{NAME}?restype=container", status=201))

    def blob(prefix: str, method: str, status: int) -> Make:
        content = CONTENT if method == "PUT" else b""
        return lambda number: Call(method, f"{prefix}/{NAME}/{number % 2}", content, BLOB_HEADERS, status)

    ways = {"put a blob": ("PUT", 201), "get a blob": ("GET", 200)}
    other_prefix = f"/{BLOB_ACCOUNT}"
    return [
        Operation(name, "azurite", (lab, blob("", *way)), (other, blob(other_prefix, *way)))
        for name, way in ways.items()
    ]


def cloud(stack: contextlib.ExitStack, variables: Mapping[str, str], arm: Endpoint, other: Endpoint) -> list[Operation]:
    """Return what is asked of the lab's Azure and of moto's AWS: a list of `IDENTITIES`, and a secret."""
    with contextlib.closing(Admin(variables)) as admin:
        for number in range(IDENTITIES):
            admin.create_identity(GROUP, f"{NAME}-{number}", LOCATION)
            other.send(iam("CreateRole", RoleName=f"{NAME}-{number}", AssumeRolePolicyDocument=POLICY))
        admin.create_vault(GROUP, VAULT, LOCATION)
        admin.set_secret(VAULT, NAME, "text")
        identities = admin.identity(GROUP, "")
    vault = azure_endpoint(variables, f"{VAULT}.vault.azure.net", "https://vault.azure.net")
    stack.callback(vault.close)
    other.send(secret("CreateSecret", Name=NAME, SecretString="text"))
    list_identities = Call("GET", f"{identities.rstrip('/')}?api-version={ARM_VERSION}")
    get_secret = Call("GET", f"/secrets/{NAME}?api-version=7.4")
    return [
        Operation(
            f"list {IDENTITIES} identities",
            "moto",
            (arm, lambda _: list_identities),
            (other, lambda _: iam("ListRoles")),
        ),
        Operation(
            "get a secret",
            "moto",
            (vault, lambda _: get_secret),
            (other, lambda _: secret("GetSecretValue", SecretId=NAME)),
        ),
    ]


def secret(action: str, **fields: str) -> Call:
    """Return a call of AWS's Secrets Manager."""
    kind = {"Content-Type": "application/x-amz-json-1.1", "X-Amz-Target": f"secretsmanager.{action}"}
    return Call("POST", "/", json.dumps(fields).encode(), aws_headers("secretsmanager") | kind)


def summary(rounds: Sequence[Round], references: Mapping[str, Run]) -> dict[str, Any]:
    """Return the figures of all rounds; ratios are taken within a round."""
    figures: dict[str, Any] = {"rounds": len(rounds)}
    for field in ("ready_s", "idle_mib", "mib"):
        values = [getattr(entry, field) for entry in rounds]
        figures[field] = {name: spread([value[name] for value in values], 2) for name in ("lab", *references)}
        figures[f"{field} over"] = {
            name: spread([value["lab"] / value[name] for value in values]) for name in references
        }
        if references.keys() == REFERENCES.keys():
            totals = [sum(value[name] for name in references) for value in values]
            figures[f"{field} over all"] = spread(
                [value["lab"] / total for value, total in zip(values, totals, strict=True)]
            )
    figures["requests"] = {
        name: {
            "lab_per_second": spread([1 / entry.seconds[name][0] for entry in rounds], 0),
            "other_per_second": spread([1 / entry.seconds[name][1] for entry in rounds], 0),
            "time over": spread([entry.seconds[name][0] / entry.seconds[name][1] for entry in rounds]),
        }
        for name in rounds[0].seconds
    }
    return figures


if __name__ == "__main__":
    sys.exit(main())
