"""What a Kubernetes API must do with any object: writes, patches, deletion, selection, pages, watches."""

import json
from typing import Any

import pytest

from contract.conftest import Kubectl
from waiting import until

Json = dict[str, Any]
PODS = "/api/v1/namespaces/{}/pods"
CONFIG_MAPS = "/api/v1/namespaces/{}/configmaps"


def config_map(name: str, data: Json | None = None, **metadata: Any) -> Json:
    """Return a ConfigMap."""
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, **metadata}, "data": data or {}}


def deployment(replicas: int = 1) -> Json:
    """Return a Deployment whose pods never start: no node fits."""
    containers = [{"name": "one", "image": "nothing:1"}]
    spec = {"containers": containers, "nodeSelector": {"nowhere": "here"}}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": spec},
        },
    }


def names(kubectl: Kubectl, *arguments: str) -> list[str]:
    """Return the names of the ConfigMaps that a selection returns, without the cluster's own."""
    items = kubectl.get("configmaps", *arguments)["items"]
    return [one["metadata"]["name"] for one in items if one["metadata"]["name"] != "kube-root-ca.crt"]


def changes(kubectl: Kubectl, version: str) -> list[tuple[str, str]]:
    """Return the changes of ConfigMaps with the label `seen` that a watch from `version` reports within a second."""
    query = f"?watch=true&resourceVersion={version}&timeoutSeconds=1&labelSelector=seen%3Dyes"
    lines = [json.loads(line) for line in kubectl.raw(CONFIG_MAPS + query).splitlines()]
    return [(one["type"], one["object"]["metadata"]["name"]) for one in lines if one["type"] != "BOOKMARK"]


def test_a_name_is_taken_once(kubectl: Kubectl) -> None:
    """Creating an object of the same name again is a conflict."""
    kubectl("create", "-f", "-", stdin=config_map("a"))
    assert "already exists" in kubectl.refused("create", "-f", "-", stdin=config_map("a"))


@pytest.mark.parametrize("name", ["Upper", "under_score", "-dash", "x" * 254])
def test_a_name_must_be_a_name(kubectl: Kubectl, name: str) -> None:
    """Objects' names are DNS subdomains of at most 253 characters."""
    assert "metadata.name" in kubectl.refused("create", "-f", "-", stdin=config_map(name))


def test_a_namespace_must_be_there(kubectl: Kubectl) -> None:
    """Creating an object in a missing namespace is refused, and the refusal names the namespace."""
    made = config_map("a", namespace="no-such-place")
    told = kubectl.refused("create", "-n", "no-such-place", "-f", "-", stdin=made)
    assert '"no-such-place" not found' in told


def test_a_name_can_be_made_up(kubectl: Kubectl) -> None:
    """An object with `generateName` gets a longer name that begins with it."""
    made = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"generateName": "made-"}}
    kubectl("create", "-f", "-", stdin=made)
    (name,) = names(kubectl)
    assert name.startswith("made-")
    assert len(name) > len("made-")


def test_a_stale_write_is_a_conflict(kubectl: Kubectl) -> None:
    """An object that has changed since it was read cannot be replaced with what was read."""
    kubectl("create", "-f", "-", stdin=config_map("a", {"x": "1"}))
    stale = kubectl.get("configmap", "a")
    kubectl("patch", "configmap", "a", "--type=merge", "-p", '{"data":{"x":"2"}}')
    assert "the object has been modified" in kubectl.refused("replace", "-f", "-", stdin=stale)


def test_three_kinds_of_patch(kubectl: Kubectl) -> None:
    """Merge patches replace lists, strategic patches merge them by key, and JSON patches test before they change."""
    kubectl("create", "-f", "-", stdin=deployment())
    change: Json = {"spec": {"template": {"spec": {"containers": [{"name": "two", "image": "nothing:2"}]}}}}
    kubectl("patch", "deployment", "web", "--type=strategic", "-p", json.dumps(change))
    containers = kubectl.get("deployment", "web")["spec"]["template"]["spec"]["containers"]
    assert {one["name"] for one in containers} == {"one", "two"}
    kubectl("patch", "deployment", "web", "--type=merge", "-p", json.dumps(change))
    containers = kubectl.get("deployment", "web")["spec"]["template"]["spec"]["containers"]
    assert [one["name"] for one in containers] == ["two"]
    kubectl("patch", "deployment", "web", "--type=json", "-p", '[{"op":"replace","path":"/spec/replicas","value":3}]')
    assert kubectl.get("deployment", "web")["spec"]["replicas"] == 3
    wrong = '[{"op":"test","path":"/spec/replicas","value":1},{"op":"remove","path":"/metadata/labels"}]'
    kubectl.refused("patch", "deployment", "web", "--type=json", "-p", wrong)


def test_labels_annotations_and_scale(kubectl: Kubectl) -> None:
    """The everyday commands `kubectl label`, `annotate` and `scale` work."""
    kubectl("create", "-f", "-", stdin=deployment())
    kubectl("label", "deployment", "web", "team=a")
    kubectl("annotate", "deployment", "web", "note=b")
    kubectl("scale", "deployment", "web", "--replicas=2")
    stored = kubectl.get("deployment", "web")
    assert stored["metadata"]["labels"]["team"] == "a"
    assert stored["metadata"]["annotations"]["note"] == "b"
    assert stored["spec"]["replicas"] == 2
    assert json.loads(kubectl.raw("/apis/apps/v1/namespaces/{}/deployments/web/scale"))["spec"] == {"replicas": 2}


def test_a_finalizer_holds_an_object(kubectl: Kubectl) -> None:
    """A deleted object is marked first, and gone once its last finalizer is removed."""
    kubectl("create", "-f", "-", stdin=config_map("a", finalizers=["example.org/hold"]))
    kubectl("delete", "configmap", "a", "--wait=false")
    assert kubectl.get("configmap", "a")["metadata"]["deletionTimestamp"]
    kubectl("patch", "configmap", "a", "--type=merge", "-p", '{"metadata":{"finalizers":null}}')
    assert "not found" in kubectl.refused("get", "configmap", "a")


def test_a_child_goes_with_its_owner(kubectl: Kubectl) -> None:
    """An object whose owner reference names a deleted object is deleted, too."""
    kubectl("create", "-f", "-", stdin=config_map("owner"))
    uid = kubectl.get("configmap", "owner")["metadata"]["uid"]
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": uid}
    kubectl("create", "-f", "-", stdin=config_map("child", ownerReferences=[reference]))
    kubectl("delete", "configmap", "owner")
    until(lambda: not names(kubectl), "the child is gone")


def test_a_namespace_takes_its_objects_along(kubectl: Kubectl) -> None:
    """Deleting a namespace deletes the objects in it."""
    other = f"{kubectl.namespace}-other"
    kubectl("create", "namespace", other)
    kubectl("create", "-n", other, "-f", "-", stdin=config_map("a"))
    kubectl("delete", "namespace", other, "--wait=false")
    until(lambda: "not found" in kubectl.tried("get", "configmap", "a", "-n", other).stderr, "it is gone")


def test_labels_and_fields_choose(kubectl: Kubectl) -> None:
    """Lists are selected by a label's value, set, presence and absence, and by the field metadata.name."""
    for name, labels in (("a", {"tier": "one"}), ("b", {"tier": "two"}), ("c", {})):
        kubectl("create", "-f", "-", stdin=config_map(name, labels=labels))
    assert names(kubectl, "-l", "tier=one") == ["a"]
    assert names(kubectl, "-l", "tier") == ["a", "b"]
    assert names(kubectl, "-l", "tier in (two,three)") == ["b"]
    assert names(kubectl, "-l", "tier,tier!=one") == ["b"]
    assert names(kubectl, "-l", "!tier") == ["c"]
    assert names(kubectl, "--field-selector", "metadata.name=b") == ["b"]


def test_a_list_comes_in_pages(kubectl: Kubectl) -> None:
    """`limit` and `continue` give every object once; a made-up `continue` token is refused."""
    for name in ("a", "b", "c"):
        kubectl("create", "-f", "-", stdin=config_map(name, labels={"page": "yes"}))
    path = f"{CONFIG_MAPS}?labelSelector=page%3Dyes&limit=2"
    first = json.loads(kubectl.raw(path))
    assert [one["metadata"]["name"] for one in first["items"]] == ["a", "b"]
    second = json.loads(kubectl.raw(f"{path}&continue={first['metadata']['continue']}"))
    assert [one["metadata"]["name"] for one in second["items"]] == ["c"]
    assert not second["metadata"].get("continue")
    assert "continue" in kubectl.refused("get", "--raw", f"{path}&continue=guess".replace("{}", kubectl.namespace))


def test_a_watch_tells_what_happened_since_a_list(kubectl: Kubectl) -> None:
    """A watch from a list's version reports each addition, change and deletion in order, and nothing older."""
    kubectl("create", "-f", "-", stdin=config_map("before", labels={"seen": "yes"}))
    version = (
        kubectl.get("configmaps")["metadata"].get("resourceVersion")
        or json.loads(kubectl.raw(CONFIG_MAPS))["metadata"]["resourceVersion"]
    )
    kubectl("create", "-f", "-", stdin=config_map("a", labels={"seen": "yes"}))
    kubectl("label", "configmap", "a", "more=yes")
    kubectl("delete", "configmap", "a")
    told: list[tuple[str, str]] = []

    def all_is_told() -> bool:  # on a busy machine, a second may not be enough
        told[:] = changes(kubectl, version)
        return len(told) >= 3

    until(all_is_told, "three changes")
    assert told == [("ADDED", "a"), ("MODIFIED", "a"), ("DELETED", "a")]


def test_a_watch_can_begin_with_what_exists(kubectl: Kubectl) -> None:
    """Today's clients list by a watch: it reports every object once, and then a mark that these were all."""
    for name in ("a", "b"):
        kubectl("create", "-f", "-", stdin=config_map(name, labels={"first": "yes"}))
    query = "?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"
    told: list[Json] = []

    def all_is_told() -> bool:  # on a busy machine, a second may not be enough
        path = f"{CONFIG_MAPS}{query}&timeoutSeconds=1&labelSelector=first%3Dyes"
        told[:] = [json.loads(line) for line in kubectl.raw(path).splitlines()]
        return len(told) >= 3

    until(all_is_told, "both objects and the mark")
    assert sorted((one["type"], one["object"]["metadata"]["name"]) for one in told[:2]) == [
        ("ADDED", "a"),
        ("ADDED", "b"),
    ]
    assert told[2]["type"] == "BOOKMARK"
    assert told[2]["object"]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}


def test_what_leaves_a_selection_is_told_as_deleted(kubectl: Kubectl) -> None:
    """A watch of a label reports an object that loses the label as deleted."""
    kubectl("create", "-f", "-", stdin=config_map("a", labels={"seen": "yes"}))
    version = json.loads(kubectl.raw(CONFIG_MAPS))["metadata"]["resourceVersion"]
    kubectl("label", "configmap", "a", "seen-")
    told: list[tuple[str, str]] = []

    def it_is_told() -> bool:
        told[:] = changes(kubectl, version)
        return bool(told)

    until(it_is_told, "the change")
    assert told == [("DELETED", "a")]


def test_a_service_account_may_do_what_its_role_says(kubectl: Kubectl) -> None:
    """Without a rule the refusal names user, verb and resource; `auth can-i` agrees with the role."""
    kubectl("create", "serviceaccount", "reader")
    kubectl("create", "role", "reader", "--verb=get,list", "--resource=configmaps")
    kubectl("create", "rolebinding", "reader", "--role=reader", f"--serviceaccount={kubectl.namespace}:reader")
    token = f"--token={kubectl('create', 'token', 'reader').strip()}"
    until(lambda: kubectl.tried("get", "configmaps", token).returncode == 0, "the role holds")
    told = kubectl.refused("get", "secrets", token)
    assert f'User "system:serviceaccount:{kubectl.namespace}:reader" cannot list resource "secrets"' in told
    assert kubectl("auth", "can-i", "list", "configmaps", token).strip() == "yes"
    assert kubectl.tried("auth", "can-i", "delete", "configmaps", token).stdout.split()[0] == "no"


def test_tables_have_kubectls_columns(kubectl: Kubectl) -> None:
    """`kubectl get` prints the columns that users of kubectl know."""
    kubectl("create", "-f", "-", stdin=deployment())
    until(lambda: kubectl.get("pods")["items"], "a pod")
    heads = {
        "pods": "NAME READY STATUS RESTARTS AGE",
        "deployments": "NAME READY UP-TO-DATE AVAILABLE AGE",
        "replicasets": "NAME DESIRED CURRENT READY AGE",
    }
    for kind, head in heads.items():
        assert kubectl("get", kind).splitlines()[0].split() == head.split()
    assert kubectl("get", "pods").splitlines()[1].split()[1:3] == ["0/1", "Pending"]


def test_a_dry_run_changes_nothing(kubectl: Kubectl) -> None:
    """A dry run on the server creates no object, whether the server does it or refuses it."""
    kubectl.tried("create", "--dry-run=server", "-f", "-", stdin=config_map("a"))
    assert names(kubectl) == []
