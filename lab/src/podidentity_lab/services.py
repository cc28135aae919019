"""Services in the fabric: which nft rules send a Service's addresses to its endpoints, and the task that keeps them so.

Every node's default route leads to the fabric, so the rules stand there once and not on every node. Connections are
masqueraded: the answer of a pod on the caller's own node must pass the fabric again.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any, Protocol

from podidentity.linux.commands import run
from podidentity_lab.fabric import FABRIC_ADDRESS, LOAD_BALANCER_NETWORK, SERVICE_NETWORK

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
        """Return all objects of a kind."""
        ...

    def watch(self, resource: str, namespace: str | None = None) -> AsyncIterator[Any]:
        """Yield what exists, then every change."""
        ...


async def run_services(source: ServiceSource) -> None:
    """Keep the rules in step with Services and Endpoints until cancelled. Raises `HostError`."""
    change = asyncio.Event()
    change.set()
    async with asyncio.TaskGroup() as tasks:
        for resource in ("services", "endpoints"):
            tasks.create_task(_notice(source, resource, change))
        loaded_text = ""
        while True:
            await change.wait()
            change.clear()
            text = render(routes(source.list("services"), source.list("endpoints")))
            if text != loaded_text:
                await run("nft", "-f", "-", text=text)
                loaded_text = text


async def _notice(source: ServiceSource, resource: str, change: asyncio.Event) -> None:
    async for _ in source.watch(resource):
        change.set()


def routes(services: Iterable[Json], endpoints: Iterable[Json]) -> dict[Front, tuple[Backend, ...]]:
    """Return where each Service's address and port lead; () for a Service without endpoints."""
    by_name = {(endpoint["metadata"]["namespace"], endpoint["metadata"]["name"]): endpoint for endpoint in endpoints}
    table: dict[Front, tuple[Backend, ...]] = {}
    for service in services:
        endpoint = by_name.get((service["metadata"]["namespace"], service["metadata"]["name"]), {})
        for address in _addresses(service):
            for port in service["spec"].get("ports") or ():
                front = (str(port.get("protocol", "TCP")).lower(), address, int(port["port"]))
                table[front] = _backends(endpoint, str(port.get("name", "")))
    table["tcp", KUBERNETES_ADDRESS, KUBERNETES_PORT] = (KUBERNETES_BACKEND,)
    return table


def render(table: dict[Front, tuple[Backend, ...]]) -> str:
    """Return the nft script that replaces the previous table, in one transaction."""
    rules = [_rule(front, backends) for front, backends in sorted(table.items()) if backends]
    lines = [f"table ip {TABLE}", f"delete table ip {TABLE}", f"table ip {TABLE} {{"]
    for chain, hook in (("arriving", "prerouting"), ("own", "output")):
        lines += [f"  chain {chain} {{", f"    type nat hook {hook} priority -100; policy accept;", *rules, "  }"]
    lines += ["  chain leaving {", "    type nat hook postrouting priority 100; policy accept;"]
    lines += ["    ct status dnat masquerade", "  }"]
    reject = f"    ip daddr {{ {SERVICE_NETWORK}, {LOAD_BALANCER_NETWORK} }}"
    for chain, hook in (("nowhere", "forward"), ("own_nowhere", "output")):
        lines += [f"  chain {chain} {{", f"    type filter hook {hook} priority 0; policy accept;"]
        lines += [f"{reject} meta l4proto tcp reject with tcp reset", f"{reject} reject", "  }"]
    lines.append("}")
    return "\n".join(lines) + "\n"


def _rule(front: Front, backends: tuple[Backend, ...]) -> str:
    protocol, address, port = front
    start = f"    ip daddr {address} {protocol} dport {port} dnat"
    if len(backends) == 1:
        return f"{start} to {backends[0][0]}:{backends[0][1]}"
    elements = ", ".join(f"{number} : {backend[0]} . {backend[1]}" for number, backend in enumerate(backends))
    return f"{start} to numgen random mod {len(backends)} map {{ {elements} }}"


def _addresses(service: Json) -> list[str]:
    cluster = service["spec"].get("clusterIP")
    addresses = [cluster] if cluster and cluster != "None" else []
    balancer = (service.get("status") or {}).get("loadBalancer") or {}
    addresses += [ingress["ip"] for ingress in balancer.get("ingress") or () if ingress.get("ip")]
    return addresses


def _backends(endpoints: Json, port_name: str) -> tuple[Backend, ...]:
    return tuple(
        (address["ip"], int(port["port"]))
        for subset in endpoints.get("subsets") or ()
        for port in subset.get("ports") or ()
        if str(port.get("name", "")) == port_name
        for address in subset.get("addresses") or ()
    )
