"""What a cloud does for Services of a real cluster: it gives LoadBalancers an address. kube-proxy does the rest.

Keeps all Services in memory besides: the lab's DNS asks for their addresses.
"""

import asyncio
import ipaddress
import logging
from collections.abc import Iterator

import httpx2

from podidentity_lab.fabric import LOAD_BALANCER_NETWORK
from podidentity_lab.real.client import Client, Json

SERVICES = "/api/v1/services"
AGAIN_SECONDS = 0.5

_log = logging.getLogger("podidentity_lab")


class Services:
    """The cluster's Services as last seen."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._services: dict[tuple[str, str], Json] = {}
        self._addresses = self._free()

    def cluster_ip(self, namespace: str, name: str) -> str | None:
        """Return a Service's address; None when it has none."""
        address = self._services.get((namespace, name), {}).get("spec", {}).get("clusterIP")
        return None if address in {None, "", "None"} else str(address)

    async def run(self) -> None:
        """Follow the API until cancelled, also when it goes away meanwhile."""
        while True:
            try:
                await self._follow()
            except httpx2.HTTPError as error:
                _log.info("Services: the API does not answer (%s); asking again", type(error).__name__)
            await asyncio.sleep(AGAIN_SECONDS)

    async def _follow(self) -> None:
        services = await self._client.list(SERVICES)
        self._services = {_key(service): service for service in services["items"]}
        for service in services["items"]:
            await self._balance(service)
        async for event in self._client.watch(SERVICES, services["metadata"]["resourceVersion"]):
            if event["type"] == "ERROR":
                return  # too old: list again
            if event["type"] == "DELETED":
                self._services.pop(_key(event["object"]), None)
            elif event["type"] != "BOOKMARK":
                self._services[_key(event["object"])] = event["object"]
                await self._balance(event["object"])

    async def _balance(self, service: Json) -> None:
        if service["spec"].get("type") != "LoadBalancer" or service.get("status", {}).get("loadBalancer", {}).get(
            "ingress"
        ):
            return
        namespace, name = _key(service)
        ingress = [{"ip": next(self._addresses), "ipMode": "VIP"}]
        path = f"/api/v1/namespaces/{namespace}/services/{name}"
        await self._client.patch_status(path, {"loadBalancer": {"ingress": ingress}})

    def _free(self) -> Iterator[str]:
        while True:  # addresses that are still in use are skipped
            for address in ipaddress.ip_network(LOAD_BALANCER_NETWORK).hosts():
                if str(address) not in self._used_addresses():
                    yield str(address)

    def _used_addresses(self) -> set[str]:
        balancers = (service.get("status", {}).get("loadBalancer", {}) for service in self._services.values())
        return {ingress["ip"] for balancer in balancers for ingress in balancer.get("ingress") or () if "ip" in ingress}


def _key(service: Json) -> tuple[str, str]:
    return service["metadata"]["namespace"], service["metadata"]["name"]
