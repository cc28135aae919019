"""Probes: asks a container whether it is alive or ready, over HTTP, TCP or by a program in it.

Fields and defaults are Kubernetes' (kubernetes.io/docs/concepts/configuration/liveness-readiness-startup-probes).
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from podidentity_lab.kubelet.containers import ContainerProcess
from podidentity_lab.kubelet.node import Json
from podidentity_lab.linux.namespaces import open_stream

DEFAULT_PERIOD_SECONDS = 10.0
EAGER_SECONDS = 0.5
SAID_LIMIT = 200


@dataclass(frozen=True, slots=True)
class ProbeTarget:
    """What a probe works on. `node` is the namespace that the kubelet's own connections start from."""

    spec: Json
    container: Json
    running: ContainerProcess
    address: str
    node: str


async def run_probe(target: ProbeTarget, tell: Callable[[bool, str], None], *, eager: bool) -> None:
    """Probe again and again until cancelled; call `tell` with a verdict and its reason when its threshold is reached.

    With `eager`, a container that has never answered is probed twice a second, whatever its period: people wait.
    """
    spec = target.spec
    thresholds = {True: int(spec.get("successThreshold") or 1), False: int(spec.get("failureThreshold") or 3)}
    period = float(spec.get("periodSeconds") or DEFAULT_PERIOD_SECONDS)
    await asyncio.sleep(float(spec.get("initialDelaySeconds") or 0))
    last, count, ever_well = None, 0, False
    while True:
        well, message = await ask(target)
        count = count + 1 if well is last else 1
        last, ever_well = well, ever_well or well
        if count == thresholds[well]:
            tell(well, message)
        await asyncio.sleep(min(period, EAGER_SECONDS) if eager and not ever_well else period)


async def ask(target: ProbeTarget) -> tuple[bool, str]:
    """Probe once; return whether it went well, and the reason."""
    spec, seconds = target.spec, float(target.spec.get("timeoutSeconds") or 1)
    try:
        async with asyncio.timeout(seconds):
            if "exec" in spec:
                status, output = await target.running.execute(spec["exec"]["command"], seconds)
                return status == 0, output.decode(errors="replace")[:SAID_LIMIT]
            if "httpGet" in spec:
                return await _get(target, spec["httpGet"])
            if "tcpSocket" in spec:
                _, writer = await _connect(target, spec["tcpSocket"])
                writer.close()
                return True, ""
    except TimeoutError:
        return False, f"no answer within {seconds:g} s"
    except (OSError, ValueError, asyncio.IncompleteReadError) as error:
        return False, str(error)
    return False, f"the lab does not know the probe {', '.join(spec)}"


async def _get(target: ProbeTarget, action: Json) -> tuple[bool, str]:
    if str(action.get("scheme", "HTTP")).upper() != "HTTP":
        return False, "the lab probes over http only"
    reader, writer = await _connect(target, action)
    try:
        headers = {header["name"]: header["value"] for header in action.get("httpHeaders") or ()}
        host = headers.pop("Host", f"{action.get('host') or target.address}:{_port(target.container, action['port'])}")
        header_lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        path = action.get("path") or "/"
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: kube-probe/lab\r\n{header_lines}".encode())
        writer.write(b"Accept: */*\r\nConnection: close\r\n\r\n")
        line = (await reader.readline()).split()
        if len(line) < 2 or not line[1].isdigit():
            return False, "the answer is no HTTP"
        status = int(line[1])
        return 200 <= status < 400, f"HTTP probe failed with statuscode: {status}"
    finally:
        writer.close()


async def _connect(target: ProbeTarget, action: Json) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    stream = open_stream(target.node)
    try:
        address: Any = (action.get("host") or target.address, _port(target.container, action["port"]))
        await asyncio.get_running_loop().sock_connect(stream, address)
    except BaseException:
        stream.close()
        raise
    return await asyncio.open_connection(sock=stream)


def _port(container: Json, port: int | str) -> int:
    """Return a port given by number, or by the name that the container gives it. Raises `ValueError`."""
    for container_port in container.get("ports") or ():
        if container_port.get("name") == port:
            return int(container_port["containerPort"])
    return int(port)
