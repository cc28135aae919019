"""The changes to a pod: variables, one projected volume, and its mounts, as a JSON patch (RFC 6902).

A pod that is changed twice (webhooks may be invoked again) is as one that is changed once.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from podidentity.core.injection import conflicts
from podidentity.core.injection.rules import Door, Rules, TokenFileDoor, TokenProxy, TrustBundle
from podidentity.core.injection.wishes import Wish
from podidentity.core.model.federation import TOKEN_FILE_DIRECTORY, TOKEN_FILE_NAME, TOKEN_FILE_PATH

Json = dict[str, Any]

VOLUME_PREFIX = "azure-workload-identity-reserved-"
TOKEN_FILE = "token/azure-identity-token"  # noqa: S105  # a path
CA_FILE = "ca-cert/ca.crt"
OLD_VOLUME = "azure-identity-token"
OLD_TOKEN_FILE = "azure-identity-token"  # noqa: S105  # a path
HOST_IP = "PODIDENTITY_HOST_IP"
_DIGITS = 30
_MODE = 0o644


@dataclass(frozen=True, slots=True)
class _Injection:
    """What each container gets (`variables`, `mount`), and the pod (`volume`)."""

    variables: Sequence[Json]
    mount: Json
    volume: Json


def patch(pod: Mapping[str, Any], wish: Wish, rules: Rules) -> list[Json]:
    """Return the operations that give a pod what it wishes for. `pod` is the whole object, `wish.door` is offered."""
    spec = pod.get("spec") or {}
    injection = _injection(pod, wish, rules)
    volumes = [volume for volume in spec.get("volumes") or () if volume.get("name") != injection.volume["name"]]
    operations = [_operation("volumes", [*volumes, injection.volume])]
    for kind in ("initContainers", "containers"):
        containers = spec.get(kind)
        if containers:
            results = [_with(container, injection, wish.exempt_containers) for container in containers]
            operations.append(_operation(kind, results))
    return operations


def volume_name(pod: Mapping[str, Any]) -> str:
    """Return the volume's name: of the pod's name, or of what its name will begin with."""
    metadata = pod.get("metadata") or {}
    name = metadata.get("name") or f"{metadata.get('generateName', '')} (prefix)"
    return VOLUME_PREFIX + hashlib.sha256(name.encode()).hexdigest()[:_DIGITS]


def mount_name(pod: Mapping[str, Any], wish: Wish) -> str:
    """Return the name of the volume and its mounts: azure-workload-identity's up to v1.5 had another."""
    return OLD_VOLUME if wish.old_path and wish.door is not Door.TOKEN_FILE else volume_name(pod)


def _injection(pod: Mapping[str, Any], wish: Wish, rules: Rules) -> _Injection:
    if wish.door is Door.TOKEN_FILE and rules.token_file is not None:
        return _by_token_file(mount_name(pod, wish), wish, rules.token_file)
    proxy = rules.proxy if wish.door is Door.PROXY else None
    audience = rules.audience if proxy is None else proxy.audience
    path, file = conflicts.mount_path(wish), OLD_TOKEN_FILE if wish.old_path else TOKEN_FILE
    variables = [
        _variable("AZURE_CLIENT_ID", wish.client_id),
        _variable("AZURE_TENANT_ID", wish.tenant_id),
        _variable("AZURE_FEDERATED_TOKEN_FILE", f"{path}/{file}"),
        _variable("AZURE_AUTHORITY_HOST", rules.authority_host),
        *(_proxy_variables(proxy, path) if proxy is not None else ()),
    ]
    sources = [
        _token(audience, wish.expiration_seconds, file),
        *(_ca_sources(proxy.trust) if proxy is not None else ()),
    ]
    name = mount_name(pod, wish)
    return _Injection(
        [variable for variable in variables if variable["value"]], _mount(name, path), _volume(name, sources)
    )


def _by_token_file(name: str, wish: Wish, door: TokenFileDoor) -> _Injection:
    """Return the environment of Azure Arc's managed identity, which every SDK knows.

    AZURE_CLIENT_ID stays unset: DefaultAzureCredential would take it for a selector, which some clients refuse here.
    """
    host = f"[$({HOST_IP})]" if door.is_ipv6 else f"$({HOST_IP})"  # a kubelet expands the text, and adds no brackets
    address = f"http://{host}:{door.port}"
    path = f"{TOKEN_FILE_PATH}/{wish.client_id}" if wish.client_id else TOKEN_FILE_PATH
    variables: list[Json] = [
        {"name": HOST_IP, "valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}}},
        _variable("IDENTITY_ENDPOINT", address + path),
        _variable("IMDS_ENDPOINT", address),
    ]
    sources = [_token(door.audience, wish.expiration_seconds, TOKEN_FILE_NAME)]
    return _Injection(variables, _mount(name, TOKEN_FILE_DIRECTORY), _volume(name, sources))


def _proxy_variables(proxy: TokenProxy, path: str) -> list[Json]:
    """Return the variables of the token proxy, with exactly one for its CA: SDKs refuse both."""
    trust = ("AZURE_KUBERNETES_CA_DATA", proxy.trust.text)
    if not proxy.trust.text:
        trust = ("AZURE_KUBERNETES_CA_FILE", f"{path}/{CA_FILE}")
    return [
        _variable("AZURE_KUBERNETES_TOKEN_PROXY", proxy.url),
        _variable("AZURE_KUBERNETES_SNI_NAME", proxy.server_name),
        _variable(*trust),
    ]


def _ca_sources(trust: TrustBundle) -> list[Json]:
    if trust.config_map:
        return [{"configMap": {"name": trust.config_map, "items": [{"key": "ca.crt", "path": CA_FILE}]}}]
    if trust.signer:
        bundle: Json = {"signerName": trust.signer, "path": CA_FILE}
        return [{"clusterTrustBundle": bundle | ({"labelSelector": dict(trust.labels)} if trust.labels else {})}]
    return []


def _with(container: Mapping[str, Any], injection: _Injection, exempt_containers: frozenset[str]) -> Json:
    """Return a container with variables that it has not set itself, and the mount unless something is there."""
    result = dict(container)
    if container.get("name") in exempt_containers:
        return result
    variables = list(container.get("env") or ())
    names = {variable.get("name") for variable in variables}
    result["env"] = [*variables, *(variable for variable in injection.variables if variable["name"] not in names)]
    name, path = injection.mount["name"], injection.mount["mountPath"]
    if conflicts.mounts_there(container, path, name):
        return result
    mounts = [mount for mount in container.get("volumeMounts") or () if mount.get("name") != name]
    result["volumeMounts"] = [*mounts, injection.mount]
    return result


def _operation(field: str, value: Sequence[Json]) -> Json:
    """Return the operation that sets a field of the spec, whether it is there or not (RFC 6902, section 4.1)."""
    return {"op": "add", "path": f"/spec/{field}", "value": value}


def _variable(name: str, value: str) -> Json:
    return {"name": name, "value": value}


def _mount(name: str, path: str) -> Json:
    return {"name": name, "mountPath": path, "readOnly": True}


def _volume(name: str, sources: Sequence[Json]) -> Json:
    return {"name": name, "projected": {"defaultMode": _MODE, "sources": sources}}


def _token(audience: str, seconds: int, path: str) -> Json:
    return {"serviceAccountToken": {"audience": audience, "expirationSeconds": seconds, "path": path}}
