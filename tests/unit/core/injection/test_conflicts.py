"""Warnings about what a pod has that works against its door."""

import copy
from typing import Any

import jsonpatch
import pytest

from podidentity.core.injection import conflicts, mutation
from podidentity.core.injection.rules import Door, Rules, TokenFileDoor
from podidentity.core.injection.wishes import Wish, read_wish

CLIENT = "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee"
W = "azure.workload.identity/"
RULES = Rules("tenant", token_file=TokenFileDoor(2580))
DOOR = {"podidentity.io/door": "token-file"}
TOKENS = "/var/opt/azcmagent/tokens"


def pod(**spec: Any) -> dict[str, Any]:
    """Return a pod of one container, unless the spec says otherwise."""
    return {"metadata": {"name": "app"}, "spec": {"containers": [{"name": "a"}], **spec}}


def wish(annotations: dict[str, str] | None = None, client_id: str = CLIENT) -> Wish:
    """Return what a pod with these annotations gets."""
    result = read_wish(annotations or {}, {f"{W}client-id": client_id}, "shop/cart", RULES)
    assert isinstance(result, Wish)
    return result


def warnings(content: dict[str, Any], wanted: Wish) -> list[str]:
    """Return the webhook's warnings; it gives none about what it has injected itself."""
    found = conflicts.find(content, wanted, mutation.mount_name(content, wanted))
    again = jsonpatch.apply_patch(copy.deepcopy(content), mutation.patch(content, wanted, RULES))
    assert conflicts.find(again, wanted, mutation.mount_name(again, wanted)) == found
    assert all(len(text) <= 256 for text in found), "the API server cuts longer ones"
    return list(found)


@pytest.mark.parametrize("annotations", [{}, DOOR, {"podidentity.io/token-path": "v1.5"}])
def test_an_ordinary_pod(annotations: dict[str, str]) -> None:
    """A pod that leaves the door to the webhook gets no warning, neither when it is reviewed again."""
    assert warnings(pod(initContainers=[{"name": "i"}]), wish(annotations)) == []


@pytest.mark.parametrize("path", [TOKENS, f"{TOKENS}/"])
def test_a_volume_that_is_there_already(path: str) -> None:
    """Two volumes at one path are refused by Kubernetes in words that nobody wrote: the pod's own is kept."""
    mount = {"name": "proof", "mountPath": path}
    content = pod(
        containers=[{"name": "a", "volumeMounts": [mount]}, {"name": "b"}],
        volumes=[{"name": "proof", "emptyDir": {}}],
    )
    (warning,) = warnings(content, wish(DOOR))
    assert warning == f"container a has a volume at {TOKENS} already, which is kept: it must have the token"
    result = jsonpatch.apply_patch(content, mutation.patch(content, wish(DOOR), RULES))
    first, second = result["spec"]["containers"]
    assert first["volumeMounts"] == [mount]
    assert [item["mountPath"] for item in second["volumeMounts"]] == [TOKENS]
    assert "IDENTITY_ENDPOINT" in {variable["name"] for variable in first["env"]}


@pytest.mark.parametrize("name", ["AZURE_CLIENT_ID", "AZURE_FEDERATED_TOKEN_FILE", "IDENTITY_HEADER", "MSI_ENDPOINT"])
def test_a_variable_that_leads_elsewhere(name: str) -> None:
    """What makes SDKs leave the token-file door is named, with the containers that have it, but for exempt ones."""
    owners = [{"name": letter, "env": [{"name": name, "value": "x"}]} for letter in "abcde"]
    exempt = DOOR | {f"{W}skip-containers": "e"}
    (warning,) = warnings(pod(initContainers=owners[:1], containers=owners[1:]), wish(exempt))
    assert warning.startswith(f"containers a, b, c and 1 more have {name} set: ")
    assert warning.endswith("; leave it out")


def test_another_door_beside_the_direct_one() -> None:
    """Variables of the token-file door, set by hand, come first in ManagedIdentityCredential."""
    (warning,) = warnings(pod(containers=[{"name": "a", "env": [{"name": "IDENTITY_ENDPOINT"}]}]), wish())
    assert "container a has IDENTITY_ENDPOINT set" in warning


@pytest.mark.parametrize("client_id", ["reader", "/subscriptions/s/x", "$(SECRET)", CLIENT[:-1], f"{CLIENT}0"])
def test_what_is_no_client_id(client_id: str) -> None:
    """A name or a resource ID in the annotation gives no token: it is said when the pod is created."""
    (warning,) = warnings(pod(), wish(client_id=client_id))
    assert f'"{client_id}" is no client ID' in warning
    assert warnings(pod(), wish(client_id=CLIENT.upper())) == []


@pytest.mark.parametrize(("names", "odd_name"), [("a,b", "a,b"), ("a b;c", "a b")])
def test_container_names_with_the_wrong_separator(names: str, odd_name: str) -> None:
    """Names are separated by semicolons; anything else exempts nobody."""
    (warning,) = warnings(pod(), wish({f"{W}skip-containers": names}))
    assert f'"{odd_name}" is no container; separate names by ;' in warning


def test_what_the_token_file_door_does_not_do() -> None:
    """The token has one place there, and no NMI serves it on Windows."""
    first, second = warnings(pod(os={"name": "windows"}), wish(DOOR | {"podidentity.io/token-path": "v1.5"}))
    assert "podidentity.io/token-path does nothing here" in first
    assert "NMI does not run on Windows" in second
    assert warnings(pod(os={"name": "windows"}), wish()) == []


def test_a_token_path_that_is_unknown() -> None:
    """There are two paths; a third is not passed over in silence."""
    assert 'podidentity.io/token-path: "v1.4" does nothing' in wish({"podidentity.io/token-path": "v1.4"}).warnings[0]


def test_where_the_token_is() -> None:
    """Each door's mount is where conflicts are looked for."""
    for annotations, path in (
        ({}, "/var/run/secrets/azure/wi"),
        ({"podidentity.io/token-path": "v1.5"}, "/var/run/secrets/azure/tokens"),
        (DOOR, TOKENS),
    ):
        wanted = wish(annotations)
        assert conflicts.mount_path(wanted) == path
        (operation,) = [item for item in mutation.patch(pod(), wanted, RULES) if item["path"] == "/spec/containers"]
        assert [mount["mountPath"] for mount in operation["value"][0]["volumeMounts"]] == [path]
    assert wish(DOOR).door is Door.TOKEN_FILE
