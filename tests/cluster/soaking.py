"""A soak of the real cluster: pods come and go and ask for tokens, while watches are cut and IMDS fails now and then.

Steady pods on both nodes make the load; short ones come and go, in waves of another identity each, so that MIC assigns
and unassigns all the time. `bench/soak.py --kubernetes real` runs it; no test does, since it says little before half an
hour. It uses the helpers of this folder.
"""

import contextlib
import itertools
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx2

from cluster.harness import Cluster, Identity, pod, until
from podidentity_lab.directory import Directory
from system.load import patient
from system.load.growing import Growth
from system.load.soaking import SAMPLE_SECONDS, Seen, Weather

NODES = ("node-0", "node-1")
CLIENT = Path(patient.__file__).read_text()
CONNECTIONS = 4
WAVE = 4
AT_ONCE = 2
SHORT_IDENTITIES = 4
TOLD_SECONDS = 60.0
JOB_POLL_SECONDS = 1.0
WAVE_SECONDS = 600.0  # a few pods, on a machine that may be busy


class Soak:
    """A soak of the cluster with podidentity installed."""

    def __init__(self, cluster: Cluster, weather: Weather) -> None:
        self.cluster = cluster
        self.weather = weather
        self.seen = Seen(seconds=weather.seconds)
        self.restarts = 0
        self._logged = 0
        self._ends = 0.0
        self._service = cluster.get("service", "kubernetes")["spec"]["clusterIP"]

    def live_through(self) -> Seen:
        """Run the soak for the time given by its weather; return what was seen."""
        steady = [self._bound(f"steady-{number}") for number in range(self.weather.identities)]
        short = [self._bound(f"short-{number}") for number in range(SHORT_IDENTITIES)]
        restarts = sum(self.cluster.restarts().values())
        with self._door() as door:
            faults = {"imds_fails": self.weather.imds_fails, "imds_token_seconds": self.weather.token_seconds}
            door.patch("/faults", json=faults).raise_for_status()
            names = self._start(steady)
            self._ends = time.monotonic() + self.weather.seconds
            with ThreadPoolExecutor() as threads:
                waves = [threads.submit(self._waves, node, short) for node in NODES]
                self._look_on(door)
                for wave in waves:
                    wave.result()
            for name in names:
                self._collect(name)
            self._count_failures(door)
        self.restarts = sum(self.cluster.restarts().values()) - restarts
        return self.seen

    def _bound(self, name: str) -> Identity:
        identity = self.cluster.identity(name)
        self.cluster.bind(identity)
        return identity

    @contextlib.contextmanager
    def _door(self) -> Iterator[httpx2.Client]:
        """A client of the control socket of the lab's Azure."""
        transport = httpx2.HTTPTransport(uds=str(Directory(self.cluster.lab.directory).control))
        with httpx2.Client(transport=transport, base_url="http://lab/azure", timeout=60) as door:
            yield door

    def _start(self, identities: list[Identity]) -> list[str]:
        """Start the steady pods, evenly on both nodes; return their names."""
        variables = {
            "CONNECTIONS": str(CONNECTIONS),
            "SECONDS": str(self.weather.seconds),
            "PER_SECOND": str(self.weather.per_second / self.weather.pods),
        }
        names = [f"steady-{number}" for number in range(self.weather.pods)]
        for number, name in enumerate(names):
            identity = identities[number // len(NODES) % len(identities)]
            self.cluster.create(self._asking(name, identity, NODES[number % len(NODES)], variables))
        for name in names:
            self.cluster.pod_ip(name)
        return names

    @staticmethod
    def _asking(name: str, identity: Identity, node: str, variables: dict[str, str]) -> dict[str, Any]:
        made = pod(name, CLIENT, binding=identity.name, node=node)
        given = {"OWN": identity.client_id} | variables
        made["spec"]["containers"][0]["env"] = [{"name": key, "value": value} for key, value in given.items()]
        return made

    def _waves(self, node: str, identities: list[Identity]) -> None:
        """Let short pods come and go on a node until the time is over."""
        wave = 0
        while time.monotonic() < self._ends:
            name, identity = f"wave-{wave}-{node}", identities[wave % len(identities)]
            try:
                self._wave(name, identity, node)
            except AssertionError as error:  # the outcome of these pods' requests is unknown
                self.seen.lost.append(f"{name}: {error}")
            wave += 1

    def _wave(self, name: str, identity: Identity, node: str) -> None:
        self.cluster.create(self._job(name, identity, node))
        until(partial(self._is_over, name), f"the end of {name}", WAVE_SECONDS)
        told = self.cluster.kubectl("logs", "-l", f"app={name}", "--tail=-1").splitlines()
        answers = [json.loads(line) for line in told if line.startswith("{")]
        for answer in answers:
            self._add(answer)
        self.seen.lost += [f"a pod of {name} told nothing"] * (WAVE - len(answers))
        self.seen.pods += len(answers)
        self.cluster.kubectl("delete", "job", name, "--wait=false")

    def _job(self, name: str, identity: Identity, node: str) -> dict[str, Any]:
        made = self._asking(name, identity, node, {})
        template = {"metadata": {"labels": made["metadata"]["labels"]}, "spec": made["spec"]}
        counts = {"completions": WAVE, "parallelism": AT_ONCE, "backoffLimit": 0}
        return {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": name},
            "spec": {**counts, "template": template},
        }

    def _is_over(self, name: str) -> bool:
        time.sleep(JOB_POLL_SECONDS)  # kubectl costs more than a token
        status = self.cluster.get("job", name)["status"]
        return any(one["type"] in {"Complete", "Failed"} for one in status.get("conditions") or ())

    def _look_on(self, door: httpx2.Client) -> None:
        """Cut watches and take samples until the time is over."""
        processes = {name: sorted(self.cluster.processes(name)) for name in ("nmi", "mic")}
        daemons = [(f"{name} {turn}", pid) for name, pids in processes.items() for turn, pid in enumerate(pids)]
        self.seen.daemons = {name: Growth() for name, _ in daemons}
        turns, cut = itertools.cycle(pid for _, pid in daemons), time.monotonic()
        told = cut
        while time.monotonic() < self._ends:
            time.sleep(SAMPLE_SECONDS)
            for name, pid in daemons:
                with contextlib.suppress(OSError):  # the daemon has ended: `restarts` counts that
                    self.seen.daemons[name].sample(pid)
            if time.monotonic() > cut + self.weather.cut_seconds:
                cut = time.monotonic()
                self._cut(next(turns))
            if time.monotonic() > told + TOLD_SECONDS:
                told = time.monotonic()
                self._count_failures(door)
                self._tell()

    def _cut(self, pid: int) -> None:
        """End the connections of a daemon to the API server, as a network that forgets them does."""
        enter = ["nsenter", f"--net=/proc/{pid}/ns/net", "--"]
        kill = ["ss", "--kill", "--tcp", "--no-header", "dst", self._service]
        done = subprocess.run([*enter, *kill], capture_output=True, text=True, check=False, timeout=60)
        if done.returncode == 0:  # otherwise it has ended: `restarts` counts that
            self.seen.cut_connections += len(done.stdout.splitlines())
            self.seen.cuts += 1

    def _count_failures(self, door: httpx2.Client) -> None:
        for entry in door.get("/log", params={"after": self._logged}).json():
            self._logged = entry["number"]
            self.seen.imds_failures += entry["service"] == "imds" and entry["status"] == 500

    def _tell(self) -> None:
        grown = {name: f"{one.resident_mib[-1][1]:.1f}" for name, one in self.seen.daemons.items()}
        left = self._ends - time.monotonic()
        lost, wrong = len(self.seen.lost), len(self.seen.wrong)
        told = f"{self.seen.pods} pods, {self.seen.cuts} cuts, {lost} lost and {wrong} wrong so far, MiB {grown}"
        sys.stderr.write(f"{left:.0f} s left: {told}\n")

    def _collect(self, name: str) -> None:
        """Wait until a steady pod has asked for its whole time, and add what it has seen."""
        url = f"http://{self.cluster.pod_ip(name)}:8080/"
        told: dict[str, Any] = {}

        def is_over() -> bool:
            status, body = self.cluster.lab.curl(url)
            told.update(json.loads(body) if status == 200 else {})
            return bool(told.get("over"))

        try:
            until(is_over, f"the end of {name}")
        except AssertionError as error:  # the outcome of its requests is unknown
            self.seen.lost.append(f"{name}: {error}")
            return
        self._add(told)
        times = Counter({float(took): count for took, count in told["times"].items()})
        self.seen.milliseconds += times.elements()
        self.seen.broken += told["broken"]

    def _add(self, told: dict[str, Any]) -> None:
        self.seen.requests += sum(told["times"].values())
        self.seen.wrong += told["wrong"]
        self.seen.lost += told["lost"]
        for status, count in told["again"].items():
            self.seen.again[int(status)] = self.seen.again.get(int(status), 0) + count
