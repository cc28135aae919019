"""Tests of what objects share in memory."""

from dataclasses import replace
from typing import Any

import msgspec

import make
from podidentity.core.model import crd
from podidentity.core.model.identities import AzureAssignedIdentity, ObjectKey
from podidentity.core.model.snapshot import Pod
from podidentity.kube.resources import ASSIGNED_IDENTITIES, SELECTED_PODS, StoredObject
from podidentity.kube.store import Store


def read_assigned(item: AzureAssignedIdentity) -> AzureAssignedIdentity:
    """Return an assigned identity as it arrives from the API server."""
    return ASSIGNED_IDENTITIES.read(msgspec.json.encode(crd.render_assigned(item))).value


def read_pod(name: str, **metadata: Any) -> Pod:
    """Return a pod as it arrives from the API server."""
    labels = {"aadpodidbinding": "reader", "pod-template-hash": "abc"}
    controller = {"kind": "ReplicaSet", "name": "web-abc", "controller": True}
    common = {"namespace": "team", "labels": labels, "ownerReferences": [controller]}
    obj = {"metadata": {"name": name, **common, **metadata}, "spec": {"nodeName": "n-1", "serviceAccountName": "web"}}
    return SELECTED_PODS.read(msgspec.json.encode(obj)).value


def test_assigned_identities_share_what_they_repeat() -> None:
    """Two pods of one identity have one AzureIdentity, one binding and one name of their node in memory."""
    items = [make.assigned(make.pod(name)) for name in ("a", "b")]
    first, second = map(read_assigned, items)
    assert [first, second] == items
    assert first.identity is second.identity
    assert first.binding is second.binding
    assert first.node is second.node
    assert first.finalizers is second.finalizers
    assert first.pod.namespace is second.pod.namespace


def test_what_differs_is_not_shared_though_it_is_equal() -> None:
    """The UID of a binding does not count for equality, but an event names it, so it stays each object's own."""
    items = [
        replace(make.assigned(make.pod(uid)), binding=replace(make.binding(), uid=uid)) for uid in ("first", "second")
    ]
    first, second = map(read_assigned, items)
    assert first.binding == second.binding
    assert (first.binding.uid, second.binding.uid) == ("first", "second")


def test_pods_share_labels_and_names() -> None:
    """Pods of one ReplicaSet have one mapping of labels in memory, and each name once; other labels are apart."""
    first, second = read_pod("a"), read_pod("b")
    assert first.labels is second.labels
    assert first.key.namespace is second.key.namespace
    assert first.node is second.node
    assert first.owner is not None
    assert second.owner is not None
    assert first.owner.name is second.owner.name
    other = read_pod("c", labels={"aadpodidbinding": "writer"})
    assert (other.selector, first.selector) == ("writer", "reader")


def test_a_store_has_each_key_once() -> None:
    """The key by which a store finds a pod is the pod's own; values without a key of their own keep the object's."""
    store: Store[object] = Store()
    pod = read_pod("a")
    for value in (pod, "no key"):
        store.upsert(StoredObject(ObjectKey("team", "a"), "uid", "1", value))
        (key,) = store.as_mapping()
        assert key == ObjectKey("team", "a")
        assert (key is pod.key) == (value is pod)
        store.remove(key)
    assert len(store) == 0
