"""Addresses for Services, and Endpoints for their pods. The fabric forwards what these say."""

import ipaddress
from typing import Any

from podidentity.lab.kubernetes.controllers.workloads import selected
from podidentity.lab.kubernetes.storage import Storage

RESOURCES = ("services", "pods", "namespaces")
CLUSTER_ADDRESSES = ipaddress.ip_network("10.96.0.0/16")
EXTERNAL_ADDRESSES = ipaddress.ip_network("10.98.0.0/24")
Json = dict[str, Any]


def reconcile(storage: Storage) -> None:
    """Give addresses to Services that have none, and say which pods are behind each; a default account a namespace."""
    for service in storage.list("services"):
        storage.change("services", *_key(service), lambda obj: _address(storage, obj))
        _endpoints(storage, service)
    for namespace in storage.list("namespaces"):
        name = namespace["metadata"]["name"]
        if not any(one["metadata"]["name"] == "default" for one in storage.list("serviceaccounts", name)):
            account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": name}}
            storage.create("serviceaccounts", account)


def _key(obj: Json) -> tuple[str, str]:
    return obj["metadata"]["namespace"], obj["metadata"]["name"]


def _address(storage: Storage, service: Json) -> None:
    spec = service["spec"]
    others = [one for one in storage.list("services") if _key(one) != _key(service)]
    if not spec.get("clusterIP"):
        spec["clusterIP"] = _free(CLUSTER_ADDRESSES, {one["spec"].get("clusterIP") for one in others})
    if spec["type"] == "LoadBalancer" and not _external(service):
        free = _free(EXTERNAL_ADDRESSES, {_external(one) for one in others})
        service["status"] = {"loadBalancer": {"ingress": [{"ip": free}]}}


def _external(service: Json) -> str:
    ingress = service.get("status", {}).get("loadBalancer", {}).get("ingress") or [{}]
    return str(ingress[0].get("ip", ""))


def _free(network: ipaddress.IPv4Network | ipaddress.IPv6Network, taken: set[Any]) -> str:
    addresses = network.hosts()
    next(addresses)  # the first is the API server's
    return next(str(address) for address in addresses if str(address) not in taken)


def _endpoints(storage: Storage, service: Json) -> None:
    selector = service["spec"].get("selector")
    if not selector:
        return
    namespace, name = _key(service)
    pods = selected(storage.list("pods", namespace), selector)
    addresses = [
        {
            "ip": pod["status"]["podIP"],
            "targetRef": {"kind": "Pod", "name": pod["metadata"]["name"], "namespace": namespace},
        }
        for pod in pods
        if pod["status"].get("podIP")
    ]
    ports = [
        {"name": port.get("name", ""), "port": _number(port["targetPort"], pods), "protocol": port["protocol"]}
        for port in service["spec"]["ports"]
    ]
    subsets = [{"addresses": addresses, "ports": ports}] if addresses else []
    metadata = {"name": name, "namespace": namespace}
    wanted = {"apiVersion": "v1", "kind": "Endpoints", "metadata": metadata, "subsets": subsets}

    def edit(obj: Json) -> None:
        obj["subsets"] = subsets

    if storage.change("endpoints", namespace, name, edit) is None:
        storage.create("endpoints", wanted)


def _number(target: int | str, pods: list[Json]) -> int:
    """A target port may be the name of a container's port."""
    if isinstance(target, int):
        return target
    ports = [port for pod in pods for container in pod["spec"]["containers"] for port in container.get("ports") or ()]
    return next((int(port["containerPort"]) for port in ports if port.get("name") == target), 0)
