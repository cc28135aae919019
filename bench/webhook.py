"""What the webhook adds to a pod's creation, beside a webhook in Go that does nothing. `make bench` runs it.

Everything is in a network namespace that this program makes: etcd and a real kube-apiserver, which `make cluster-ready`
builds, the webhook as a process with its own certificates, and the other one, both behind Services. Pods are created on
trial (`dryRun=All`), of three kinds in turn: without any webhook, with the one that does nothing, and
with ours, which reads a service account and changes the pod. What counts is the whole creation, as seen by whoever
creates a pod; a ratio is taken within a round, then the median over rounds.
"""

import argparse
import asyncio
import base64
import contextlib
import functools
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx2
import trustme

import clusters
from podidentity.core.injection.rules import CLIENT_ID, USE_LABEL
from podidentity.kube.connection import find_cluster, open_client
from podidentity.webhook.app import MUTATE_PATH
from processes import resident_mib
from results import percentile, print_result, spread
from system.load.crowd import ROOT, build_go
from waiting import eventually

NAMESPACE, ACCOUNT = "bench", "app"
ADDRESSES = {"podidentity": "10.96.77.1", "nothing": "10.96.77.2"}
"""ClusterIPs, which the loopback device has, as there is no kube-proxy."""
SERVICES = {"podidentity": "azure-wi-webhook-webhook-service", "nothing": "nothing"}
CONFIGURATIONS = {"podidentity": "azure-wi-webhook-mutating-webhook-configuration", "nothing": "nothing"}
KINDS = ("none", "nothing", "podidentity")
PORT = 9443
WAYS = {"one after the other": 1, "16 at a time": 16}
TENANT = "11111111-2222-3333-4444-555555555555"
BUDGET = {"p50_over_nothing": 2.0, "p99_over_nothing": 2.0, "rss_mib": 100.0}
"""The largest value that is within the budget of docs/performance.md: of pods that are created one after the other."""

Times = dict[str, list[float]]


def main() -> int:
    """Measure and print; exit status 1 when something is over its budget."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10, help="how often each kind is measured")
    parser.add_argument("--pods", type=int, default=200, help="how many pods of each kind in a round")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.inside:
        os.execvp("unshare", ["unshare", "--net", "--", sys.executable, *sys.argv, "--inside"])  # noqa: S606  # no shell is what is wanted
    lines = ["link set lo up", *(f"address add {address}/32 dev lo" for address in ADDRESSES.values())]
    subprocess.run(["ip", "-batch", "-"], input="\n".join(lines), text=True, check=True)
    with tempfile.TemporaryDirectory() as directory:
        figures = asyncio.run(measure(Path(directory), options.rounds, options.pods))
    single = figures["one after the other"]
    values = {
        "p50_over_nothing": single["p50 over nothing"]["median"],
        "p99_over_nothing": single["p99 over nothing"]["median"],
        "rss_mib": figures["rss_mib"],
    }
    return print_result("webhook", figures, BUDGET, values)


async def measure(folder: Path, rounds: int, pods: int) -> dict[str, Any]:
    """Run everything; return the figures."""
    async with clusters.real(folder) as (_, config), open_client(find_cluster(config)) as http:
        for path, body in objects():
            (await http.post(path, json=body)).raise_for_status()
        with webhook(folder, config) as process, idle_webhook(folder) as bundle:
            (await http.post(CONFIGURATIONS_PATH, json=configuration("nothing", bundle))).raise_for_status()
            for kind in KINDS:
                await eventually(functools.partial(is_sent, http, kind), f"pods of {kind} are admitted", 60)
            figures = {way: await compare(http, rounds, pods, width) for way, width in WAYS.items()}
            return figures | {"rss_mib": round(resident_mib(process.pid), 1)}


async def compare(http: httpx2.AsyncClient, rounds: int, pods: int, width: int) -> dict[str, Any]:
    """Return each kind's times in milliseconds, and the ratios within rounds."""
    runs: list[Times] = []
    for number in range(rounds + 1):
        entry = await create(http, pods, width)
        if number:  # the first round fills caches
            runs.append(entry)
    figures: dict[str, Any] = {"pods": rounds * pods}
    for kind, percent in itertools.product(KINDS, (50, 99)):
        figures[f"{kind}, p{percent}_ms"] = spread([percentile(entry[kind], percent) for entry in runs], 2)
    for percent in (50, 99):
        values = [{kind: percentile(entry[kind], percent) for kind in KINDS} for entry in runs]
        figures[f"p{percent} over nothing"] = spread([value["podidentity"] / value["nothing"] for value in values])
    return figures


async def create(http: httpx2.AsyncClient, count: int, width: int) -> Times:
    """Create pods of each kind on trial, `width` at a time; return the milliseconds that each took."""
    numbers = iter(range(count))
    times: Times = {kind: [] for kind in KINDS}

    async def work() -> None:
        for _ in numbers:
            for kind in KINDS:
                start = time.perf_counter()
                response = await http.post(PODS_PATH, json=pod(kind))
                times[kind].append((time.perf_counter() - start) * 1000)
                response.raise_for_status()

    await asyncio.gather(*(work() for _ in range(width)))
    return times


async def is_sent(http: httpx2.AsyncClient, kind: str) -> bool:
    """Whether a pod is admitted, and changed if it should be."""
    response = await http.post(PODS_PATH, json=pod(kind))
    return response.is_success and ("AZURE_CLIENT_ID" in response.text) == (kind == "podidentity")


@contextlib.contextmanager
def webhook(folder: Path, config: str) -> Iterator["subprocess.Popen[bytes]"]:
    """Run ours, as the chart does."""
    words = ["-m", "podidentity", "webhook", f"--namespace={NAMESPACE}", f"--kubeconfig={config}", f"--port={PORT}"]
    with (folder / "webhook.log").open("wb") as log:
        variables = {"PATH": os.environ["PATH"], "AZURE_TENANT_ID": TENANT}
        process = subprocess.Popen([*clusters.BOUND, sys.executable, *words], env=variables, stderr=log, stdout=log)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


@contextlib.contextmanager
def idle_webhook(folder: Path) -> Iterator[bytes]:
    """Run the one that does nothing; its CA as PEM."""
    program = build_go(ROOT / "bench" / "reference" / "main.go", ROOT / "build" / "bench-reference")
    authority = trustme.CA()
    certificate = authority.issue_cert(f"{SERVICES['nothing']}.{NAMESPACE}.svc")
    certificate.cert_chain_pems[0].write_to_path(folder / "server.pem")
    certificate.private_key_pem.write_to_path(folder / "server.key")
    words = [f"-address={ADDRESSES['nothing']}:{PORT + 1}", "-admission"]
    words += [f"-certificate={folder / 'server.pem'}", f"-key={folder / 'server.key'}"]
    process = subprocess.Popen([*clusters.BOUND, str(program), *words])
    try:
        yield authority.cert_pem.bytes()
    finally:
        process.kill()
        process.wait()


CONFIGURATIONS_PATH = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"
PODS_PATH = f"/api/v1/namespaces/{NAMESPACE}/pods?dryRun=All"
LABELS = {"none": "example.com/none", "nothing": "example.com/nothing", "podidentity": USE_LABEL}


def objects() -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield what there has to be, with the path that it is created at."""
    yield "/api/v1/namespaces", {"metadata": {"name": NAMESPACE}}
    metadata = {"name": ACCOUNT, "annotations": {CLIENT_ID: TENANT}}
    yield f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts", {"metadata": metadata}
    for name, port in (("podidentity", PORT), ("nothing", PORT + 1)):
        spec = {"clusterIP": ADDRESSES[name], "ports": [{"port": port}]}
        yield f"/api/v1/namespaces/{NAMESPACE}/services", {"metadata": {"name": SERVICES[name]}, "spec": spec}
    yield CONFIGURATIONS_PATH, configuration("podidentity", b"")


def configuration(name: str, bundle: bytes) -> Mapping[str, Any]:
    """Return a webhook's registration for the pods with its label."""
    port = PORT if name == "podidentity" else PORT + 1
    service = {"name": SERVICES[name], "namespace": NAMESPACE, "path": MUTATE_PATH, "port": port}
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
    entry = {
        "name": f"{name}.example.com",
        "admissionReviewVersions": ["v1"],
        "sideEffects": "None",
        "failurePolicy": "Fail",
        "clientConfig": {"service": service, "caBundle": base64.b64encode(bundle).decode()},
        "objectSelector": {"matchLabels": {LABELS[name]: "true"}},
        "rules": [rule],
    }
    return {"metadata": {"name": CONFIGURATIONS[name]}, "webhooks": [entry]}


def pod(kind: str) -> Mapping[str, Any]:
    """Return a pod with a container, a sidecar and an init container."""
    names: Sequence[str] = ("app", "sidecar")
    containers = [{"name": name, "image": "example.com/image", "env": [{"name": "A", "value": "b"}]} for name in names]
    spec = {
        "serviceAccountName": ACCOUNT,
        "containers": containers,
        "initContainers": [{"name": "init", "image": "example.com/image"}],
    }
    return {"metadata": {"generateName": "app-", "labels": {LABELS[kind]: "true"}}, "spec": spec}


if __name__ == "__main__":
    sys.exit(main())
