"""Addresses for Services, and Endpoints for their pods. The fabric forwards what these say."""

import ipaddress
from typing import Any

from podidentity_lab.kubernetes.controllers.workloads import selected
from podidentity_lab.kubernetes.storage import Storage

RESOURCES = ("services", "pods", "namespaces")
CLUSTER_ADDRESSES = ipaddress.ip_network("10.96.0.0/16")
EXTERNAL_ADDRESSES = ipaddress.ip_network("10.98.0.0/24")
Json = dict[str, Any]


def reconcile(storage: Storage) -> None:
    """Give Services their addresses and Endpoints, and each namespace its default service account."""
    for service in storage.list("services"):
        storage.change("services", *_key(service), lambda obj: _address(storage, obj))
        _endpoints(storage, service)
    for namespace in storage.list("namespaces"):
        name = namespace["metadata"]["name"]
        if not any(account["metadata"]["name"] == "default" for account in storage.list("serviceaccounts", name)):
            account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": name}}
            storage.create("serviceaccounts", account)


def _key(obj: Json) -> tuple[str, str]:
    return obj["metadata"]["namespace"], obj["metadata"]["name"]


def _address(storage: Storage, service: Json) -> None:
    spec = service["spec"]
    siblings = [sibling for sibling in storage.list("services") if _key(sibling) != _key(service)]
    if not spec.get("clusterIP"):
        spec["clusterIP"] = _free(CLUSTER_ADDRESSES, {sibling["spec"].get("clusterIP") for sibling in siblings})
    if spec["type"] == "LoadBalancer" and not _external(service):
        free = _free(EXTERNAL_ADDRESSES, {_external(sibling) for sibling in siblings})
        service["status"] = {"loadBalancer": {"ingress": [{"ip": free}]}}


def _external(service: Json) -> str:
    ingress = service.get("status", {}).get("loadBalancer", {}).get("ingress") or [{}]
    return str(ingress[0].get("ip", ""))


def _free(network: ipaddress.IPv4Network | ipaddress.IPv6Network, in_use: set[Any]) -> str:
    addresses = network.hosts()
    next(addresses)  # the first is the API server's
    return next(str(address) for address in addresses if str(address) not in in_use)


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
    endpoints = {"apiVersion": "v1", "kind": "Endpoints", "metadata": metadata, "subsets": subsets}

    def edit(obj: Json) -> None:
        obj["subsets"] = subsets

    if storage.change("endpoints", namespace, name, edit) is None:
        storage.create("endpoints", endpoints)


def _number(target: int | str, pods: list[Json]) -> int:
    """Return the number of a target port, which may be the name of a container's port."""
    if isinstance(target, int):
        return target
    ports = [port for pod in pods for container in pod["spec"]["containers"] for port in container.get("ports") or ()]
    return next((int(port["containerPort"]) for port in ports if port.get("name") == target), 0)
