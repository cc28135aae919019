"""The store alone: indexes, subscribers, and which pods may be found by address."""

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from podidentity.core.model.identities import AzureIdentityBinding, ObjectKey
from podidentity.core.model.snapshot import Pod
from podidentity.kube.resources import StoredObject
from podidentity.kube.store import Store, addresses, selector_in_namespace, selector_of


def _stored_object(name: str, version: int, words: Iterable[str]) -> StoredObject[tuple[str, ...]]:
    return StoredObject(ObjectKey("ns", name), "uid", str(version), tuple(words))


names = st.sampled_from(["a", "b", "c"])
words = st.lists(st.sampled_from(["x", "y", "z"]), max_size=2, unique=True)
actions = st.lists(
    st.one_of(
        st.tuples(st.just("put"), names, words),
        st.tuples(st.just("remove"), names),
        st.tuples(st.just("replace"), st.dictionaries(names, words)),
    )
)


@given(actions)
def test_indexes_and_subscribers_never_drift_from_the_values(steps: list[tuple[object, ...]]) -> None:
    """Whatever happens in whatever order, an index says what a scan says, and changes replayed give the same values."""
    store = Store[tuple[str, ...]]()
    by_word = store.index(lambda value: value)
    replayed: dict[ObjectKey, tuple[str, ...]] = {}

    def replay(change: object) -> None:
        key, previous, current = change.key, change.previous, change.current  # type: ignore[attr-defined]
        assert replayed.get(key) == previous
        replayed.pop(key, None)
        if current is not None:
            replayed[key] = current

    store.subscribe(replay)
    for number, step in enumerate(steps):
        match step:
            case ("put", str(name), list(words)):
                store.upsert(_stored_object(name, number, words))
            case ("remove", str(name)):
                store.remove(ObjectKey("ns", name))
            case ("replace", dict(fresh)):
                all_stored = [_stored_object(name, number, words) for name, words in fresh.items()]
                store.replace({item.key: item for item in all_stored})
        assert replayed == store.as_mapping()
        for word in "xyz":
            assert sorted(by_word.find(word)) == sorted(value for value in store if word in value)
        assert all(by_word.find(word) for word in by_word.keys())  # noqa: SIM118 - an Index is no mapping


def test_the_same_writing_again_is_no_change() -> None:
    """A list mostly repeats known objects: subscribers are not told of an object whose version is unchanged."""
    store = Store[tuple[str, ...]]()
    changes: list[object] = []
    store.upsert(_stored_object("a", 1, ["x"]))
    stop = store.subscribe(changes.append)
    store.replace({ObjectKey("ns", "a"): _stored_object("a", 1, ["x"])})
    assert changes == []
    assert store.revision == 1
    store.upsert(_stored_object("a", 2, ["x"]))
    stop()
    store.upsert(_stored_object("a", 3, ["x"]))
    assert len(changes) == 1
    assert store.version(ObjectKey("ns", "a")) == "3"
    assert store.version(ObjectKey("ns", "b")) == ""


def test_an_address_belongs_to_live_pods_with_a_network_of_their_own() -> None:
    """A finished pod's address may be somebody else's by now, and a host-network pod's is its node's."""
    key, ips = ObjectKey("team", "web"), ("10.0.0.1", "fd00::1")
    assert addresses(Pod(key, "u", phase="Running", ips=ips)) == ips
    assert addresses(Pod(key, "u", phase="Pending", ips=ips)) == ips
    assert addresses(Pod(key, "u", phase="Succeeded", ips=ips)) == ()
    assert addresses(Pod(key, "u", phase="Failed", ips=ips)) == ()
    assert addresses(Pod(key, "u", phase="Running", ips=ips, host_network=True)) == ()


def test_an_empty_selector_is_not_indexed() -> None:
    """A binding with an empty selector is not indexed, so that pods without the label never find it."""
    binding = AzureIdentityBinding(ObjectKey("team", "b"), "id", "sel")
    empty = AzureIdentityBinding(ObjectKey("team", "b"), "id", "")
    assert (selector_of(binding), selector_in_namespace(binding)) == (("sel",), (("team", "sel"),))
    assert (selector_of(empty), selector_in_namespace(empty)) == ((), ())
