"""Probes: asks a container whether it is alive or ready, over HTTP, TCP or by a program in it. Called by `lifecycle`.

Fields and defaults are Kubernetes' (kubernetes.io/docs/concepts/configuration/liveness-readiness-startup-probes).
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from podidentity.lab.kubelet.containers import Running
from podidentity.lab.kubelet.node import Json
from podidentity.linux.namespaces import open_stream

DEFAULT_PERIOD_SECONDS = 10.0
EAGER_SECONDS = 0.5
SAID_LIMIT = 200


@dataclass(frozen=True, slots=True)
class Asked:
    """What a probe works on. `node` is the namespace that the kubelet's own connections start from."""

    spec: Json
    container: Json
    running: Running
    address: str
    node: str


async def run_probe(asked: Asked, tell: Callable[[bool, str], None], *, eager: bool) -> None:
    """Ask again and again until cancelled. `tell` hears of each change once its threshold is passed, and why.

    With `eager`, a container that never answered is asked twice a second: the lab is about seconds, not minutes.
    """
    spec = asked.spec
    thresholds = {True: int(spec.get("successThreshold") or 1), False: int(spec.get("failureThreshold") or 3)}
    period = float(spec.get("periodSeconds") or DEFAULT_PERIOD_SECONDS)
    await asyncio.sleep(float(spec.get("initialDelaySeconds") or 0))
    last, count, ever_well = None, 0, False
    while True:
        well, why = await ask(asked)
        count = count + 1 if well is last else 1
        last, ever_well = well, ever_well or well
        if count == thresholds[well]:
            tell(well, why)
        await asyncio.sleep(min(period, EAGER_SECONDS) if eager and not ever_well else period)


async def ask(asked: Asked) -> tuple[bool, str]:
    """One probe: whether it went well, and what was said."""
    spec, seconds = asked.spec, float(asked.spec.get("timeoutSeconds") or 1)
    try:
        async with asyncio.timeout(seconds):
            if "exec" in spec:
                status, said = await asked.running.execute(spec["exec"]["command"], seconds)
                return status == 0, said.decode(errors="replace")[:SAID_LIMIT]
            if "httpGet" in spec:
                return await _get(asked, spec["httpGet"])
            if "tcpSocket" in spec:
                _, writer = await _connect(asked, spec["tcpSocket"])
                writer.close()
                return True, ""
    except TimeoutError:
        return False, f"no answer within {seconds:g} s"
    except (OSError, ValueError, asyncio.IncompleteReadError) as error:
        return False, str(error)
    return False, f"the lab does not know the probe {', '.join(spec)}"


async def _get(asked: Asked, action: Json) -> tuple[bool, str]:
    if str(action.get("scheme", "HTTP")).upper() != "HTTP":
        return False, "the lab probes over http only"
    reader, writer = await _connect(asked, action)
    try:
        headers = {one["name"]: one["value"] for one in action.get("httpHeaders") or ()}
        host = headers.pop("Host", f"{action.get('host') or asked.address}:{_port(asked.container, action['port'])}")
        more = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        path = action.get("path") or "/"
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: kube-probe/lab\r\n{more}".encode())
        writer.write(b"Accept: */*\r\nConnection: close\r\n\r\n")
        line = (await reader.readline()).split()
        if len(line) < 2 or not line[1].isdigit():
            return False, "the answer is no HTTP"
        status = int(line[1])
        return 200 <= status < 400, f"HTTP probe failed with statuscode: {status}"
    finally:
        writer.close()


async def _connect(asked: Asked, action: Json) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    stream = open_stream(asked.node)
    try:
        address: Any = (action.get("host") or asked.address, _port(asked.container, action["port"]))
        await asyncio.get_running_loop().sock_connect(stream, address)
    except BaseException:
        stream.close()
        raise
    return await asyncio.open_connection(sock=stream)


def _port(container: Json, port: int | str) -> int:
    """A port by number or by the name that the container gives it. Raises `ValueError`."""
    for known in container.get("ports") or ():
        if known.get("name") == port:
            return int(known["containerPort"])
    return int(port)
