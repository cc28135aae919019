"""What in a pod works against what it gets: warnings for whoever creates it.

Variables and mounts that a container has already are kept, so that a door may be half somebody else's. Which variables
lead SDKs where: `azure-identity` and its siblings in other languages, ManagedIdentityCredential and
DefaultAzureCredential.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from podidentity.core.injection.rules import CLIENT_ID, SKIP_CONTAINERS, TOKEN_PATH, Door
from podidentity.core.injection.wishes import Wish
from podidentity.core.model.federation import GUID, TOKEN_FILE_DIRECTORY
from podidentity.core.model.wording import some_of

MOUNT_PATH = "/var/run/secrets/azure/wi"
OLD_MOUNT_PATH = "/var/run/secrets/azure/tokens"
_NAMES = 3
_TOKEN_FILE_RIVALS = {
    "AZURE_CLIENT_ID": "DefaultAzureCredential takes it for a selector, which some SDKs refuse at this door",
    "AZURE_FEDERATED_TOKEN_FILE": "SDKs take workload identity first",
    "IDENTITY_HEADER": "SDKs take it for App Service",
    "MSI_ENDPOINT": "SDKs take it for another service of Azure",
}
_OTHER_RIVALS = {"IDENTITY_ENDPOINT": "ManagedIdentityCredential asks there first"}


def mount_path(wish: Wish) -> str:
    """Return where the token's volume is mounted."""
    if wish.door is Door.TOKEN_FILE:
        return TOKEN_FILE_DIRECTORY
    return OLD_MOUNT_PATH if wish.old_path else MOUNT_PATH


def mounts_there(container: Mapping[str, Any], path: str, volume: str) -> bool:
    """Whether a container has another volume than `volume` at a path: Kubernetes refuses two."""
    mounts = container.get("volumeMounts") or ()
    return any(
        mount.get("name") != volume and str(mount.get("mountPath") or "").rstrip("/") == path for mount in mounts
    )


def find(pod: Mapping[str, Any], wish: Wish, volume: str) -> tuple[str, ...]:
    """Return a sentence for each conflict of a pod with what it gets. `volume` is the name of the token's."""
    spec = pod.get("spec") or {}
    containers = [
        container
        for kind in ("initContainers", "containers")
        for container in spec.get(kind) or ()
        if container.get("name") not in wish.exempt_containers
    ]
    return (*_of_settings(wish, spec), *_of_variables(wish, containers), *_of_mounts(wish, containers, volume))


def _of_settings(wish: Wish, spec: Mapping[str, Any]) -> Iterator[str]:
    if wish.client_id and GUID.fullmatch(wish.client_id.lower()) is None:
        yield (
            f'annotation {CLIENT_ID}: "{wish.client_id[:64]}" is no client ID; give the one that '
            "`az identity show --query clientId` prints"
        )
    odd_names = sorted(name for name in wish.exempt_containers if "," in name or len(name.split()) > 1)
    if odd_names:
        yield f'annotation {SKIP_CONTAINERS}: "{odd_names[0][:64]}" is no container; separate names by ;'
    if wish.door is not Door.TOKEN_FILE:
        return
    if wish.old_path:
        yield f"annotation {TOKEN_PATH} does nothing here: at the token-file door the token has one place"
    if (spec.get("os") or {}).get("name") == "windows":
        yield "NMI does not run on Windows nodes: there the pod gets no token at the token-file door"


def _of_variables(wish: Wish, containers: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    rivals = _TOKEN_FILE_RIVALS if wish.door is Door.TOKEN_FILE else _OTHER_RIVALS
    for name, reason in rivals.items():
        owners = [
            str(container.get("name"))
            for container in containers
            if any(variable.get("name") == name for variable in container.get("env") or ())
        ]
        if owners:
            yield f"{_container(owners)} {name} set: {reason}; leave it out"


def _of_mounts(wish: Wish, containers: Sequence[Mapping[str, Any]], volume: str) -> Iterator[str]:
    path = mount_path(wish)
    owners = [str(container.get("name")) for container in containers if mounts_there(container, path, volume)]
    if owners:
        yield f"{_container(owners)} a volume at {path} already, which is kept: it must have the token"


def _container(names: Sequence[str]) -> str:
    word = "container" if len(names) == 1 else "containers"
    return f"{word} {some_of(names, _NAMES)} {'has' if len(names) == 1 else 'have'}"
