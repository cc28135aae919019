"""Services in the fabric: which nft rules send a Service's addresses to its endpoints, and the task that keeps them so.

Every node's default route leads to the fabric, so the rules stand there once and not on every node. Connections are
masqueraded: the answer of a pod on the caller's own node must pass the fabric again. Called by `inside`.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any, Protocol

from podidentity.lab.fabric import FABRIC_ADDRESS, LOAD_BALANCER_NETWORK, SERVICE_NETWORK
from podidentity.linux.commands import run

Json = dict[str, Any]

KUBERNETES_ADDRESS = "10.96.0.1"
KUBERNETES_PORT = 443
KUBERNETES_BACKEND = (FABRIC_ADDRESS, 6443)
TABLE = "lab_services"

Front = tuple[str, str, int]
"""Protocol, address and port that a client connects to."""
Backend = tuple[str, int]


class ServiceSource(Protocol):
    """What this module needs of the Kubernetes API's storage."""

    def list(self, resource: str, namespace: str | None = None) -> list[Json]:
        """All objects of a kind."""
        ...

    def watch(self, resource: str, namespace: str | None = None) -> AsyncIterator[Any]:
        """What exists, then every change."""
        ...


async def run_services(source: ServiceSource) -> None:
    """Keep the rules in step with Services and Endpoints until cancelled. Raises `HostError`."""
    changed = asyncio.Event()
    changed.set()
    async with asyncio.TaskGroup() as tasks:
        for resource in ("services", "endpoints"):
            tasks.create_task(_notice(source, resource, changed))
        loaded = ""
        while True:
            await changed.wait()
            changed.clear()
            text = render(routes(source.list("services"), source.list("endpoints")))
            if text != loaded:
                await run("nft", "-f", "-", text=text)
                loaded = text


async def _notice(source: ServiceSource, resource: str, changed: asyncio.Event) -> None:
    async for _ in source.watch(resource):
        changed.set()


def routes(services: Iterable[Json], endpoints: Iterable[Json]) -> dict[Front, tuple[Backend, ...]]:
    """Say where each Service's address and port lead. A Service without endpoints leads nowhere: ()."""
    by_name = {(one["metadata"]["namespace"], one["metadata"]["name"]): one for one in endpoints}
    found: dict[Front, tuple[Backend, ...]] = {}
    for service in services:
        behind = by_name.get((service["metadata"]["namespace"], service["metadata"]["name"]), {})
        for address in _addresses(service):
            for port in service["spec"].get("ports") or ():
                front = (str(port.get("protocol", "TCP")).lower(), address, int(port["port"]))
                found[front] = _backends(behind, str(port.get("name", "")))
    found["tcp", KUBERNETES_ADDRESS, KUBERNETES_PORT] = (KUBERNETES_BACKEND,)
    return found


def render(found: dict[Front, tuple[Backend, ...]]) -> str:
    """Write the table that replaces the one before, in one transaction."""
    sent = [_rule(front, backends) for front, backends in sorted(found.items()) if backends]
    lines = [f"table ip {TABLE}", f"delete table ip {TABLE}", f"table ip {TABLE} {{"]
    for chain, hook in (("arriving", "prerouting"), ("own", "output")):
        lines += [f"  chain {chain} {{", f"    type nat hook {hook} priority -100; policy accept;", *sent, "  }"]
    lines += ["  chain leaving {", "    type nat hook postrouting priority 100; policy accept;"]
    lines += ["    ct status dnat masquerade", "  }"]
    refused = f"    ip daddr {{ {SERVICE_NETWORK}, {LOAD_BALANCER_NETWORK} }}"
    for chain, hook in (("nowhere", "forward"), ("own_nowhere", "output")):
        lines += [f"  chain {chain} {{", f"    type filter hook {hook} priority 0; policy accept;"]
        lines += [f"{refused} meta l4proto tcp reject with tcp reset", f"{refused} reject", "  }"]
    lines.append("}")
    return "\n".join(lines) + "\n"


def _rule(front: Front, backends: tuple[Backend, ...]) -> str:
    protocol, address, port = front
    start = f"    ip daddr {address} {protocol} dport {port} dnat"
    if len(backends) == 1:
        return f"{start} to {backends[0][0]}:{backends[0][1]}"
    elements = ", ".join(f"{number} : {one[0]} . {one[1]}" for number, one in enumerate(backends))
    return f"{start} to numgen random mod {len(backends)} map {{ {elements} }}"


def _addresses(service: Json) -> list[str]:
    cluster = service["spec"].get("clusterIP")
    addresses = [cluster] if cluster and cluster != "None" else []
    balancer = (service.get("status") or {}).get("loadBalancer") or {}
    addresses += [one["ip"] for one in balancer.get("ingress") or () if one.get("ip")]
    return addresses


def _backends(endpoints: Json, port_name: str) -> tuple[Backend, ...]:
    return tuple(
        (address["ip"], int(port["port"]))
        for subset in endpoints.get("subsets") or ()
        for port in subset.get("ports") or ()
        if str(port.get("name", "")) == port_name
        for address in subset.get("addresses") or ()
    )
