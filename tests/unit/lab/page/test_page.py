"""What the page shows and whom it lets in."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.datastructures import Headers

from podidentity_lab.page import faults, rendering
from podidentity_lab.page.door import Address, is_meant, is_token
from podidentity_lab.page.feed import QUEUE_LIMIT, ROWS_LIMIT, Feed
from podidentity_lab.page.overview import ITEMS_LIMIT, Group, Item, Objects, overview
from podidentity_lab.page.trails import Trails
from unit.lab.page.entries import azure, nmi

HOSTILE = "<img src=x onerror=alert(1)>\"'&"
STATE: dict[str, Any] = {
    "identities": {
        "/i": {
            "id": "/subscriptions/s/resourceGroups/g/providers/p/i",
            "name": "reader",
            "properties": {"clientId": "c", "principalId": "p"},
        }
    },
    "roles": {"/r": {"principal_id": "p", "role_id": "unknown", "scope": "/vaults/kv"}},
    "machines": {},
    "operations": {},
    "vaults": {"/v": {"name": "kv", "properties": {"enableRbacAuthorization": True}}},
    "secrets": {"kv/greeting": [{"value": "a secret value"}]},
    "keys": {"entra": "a private key"},
    "principals": {"p": {"secrets": {"1": "a client secret"}}},
}
STATUS: dict[str, Any] = {
    "nodes": [{"name": "node-0", "address": "10.0.0.1", "machine": "", "pods": 1}],
    "imds_packets": {"node-0": 3},
}


def groups(objects: Objects | None = None) -> dict[str, Group]:
    """Return the groups of the overview by their keys."""
    return {group.key: group for group in overview(STATUS, STATE, objects or Objects())}


def test_texts_of_others_are_escaped() -> None:
    """A pod's name, a sentence in a log, the name of a fault: all of them are text, wherever they stand."""
    trails = Trails()
    trail = trails.add(
        nmi(0.5, pod=HOSTILE.replace('"', "").replace(" ", "_"), status=403, why=HOSTILE.replace('"', ""))
    )
    group = Group("pods", "Pods", "", (Item(HOSTILE, HOSTILE, facts=((HOSTILE, HOSTILE),)),), 1)
    view = rendering.View(HOSTILE, [group], {**faults.DEFAULTS, "operation_errors": [HOSTILE]}, [trail])
    for html in (rendering.page(view), rendering.row(trail), *rendering.groups([group]).values()):
        assert "<img" not in html
        assert "&lt;img" in html


def test_no_secret_leaves_the_state() -> None:
    """The state has all of them; names of secrets are shown, values are not."""
    text = json.dumps(rendering.groups(list(groups().values())))
    assert "greeting" in text
    assert "a secret value" not in text
    assert "a private key" not in text
    assert "a client secret" not in text


def test_a_group_is_bounded_and_says_so() -> None:
    """A page of ten thousand pods helps nobody."""
    pods = [
        {"metadata": {"name": f"p{number}", "namespace": "default"}, "spec": {}} for number in range(ITEMS_LIMIT + 2)
    ]
    group = groups(Objects(pods=pods))["pods"]
    assert (len(group.items), group.total) == (ITEMS_LIMIT, ITEMS_LIMIT + 2)
    assert "2 more are not shown" in rendering.groups([group])["pods"]


def test_an_identity_shows_its_binding_and_pods() -> None:
    """What of it is in force, and what is not."""
    metadata = {"name": "reader", "namespace": "default"}
    identity = {"metadata": metadata, "spec": {"clientID": "c"}}
    binding = {"metadata": metadata, "spec": {"azureIdentity": "reader", "selector": "web"}}
    reference = {"azureIdentityRef": {"metadata": metadata}, "pod": "web-1", "podNamespace": "default"}
    items = groups(
        Objects(identities=[identity], bindings=[binding], assigned_identities=[{"spec": reference, "status": None}])
    )["bindings"].items
    assert dict(items[0].facts) == {"selector": "web", "client ID": "c", "pods": "default/web-1 Created"}
    assert groups(Objects(identities=[identity]))["bindings"].items[0].state == "not bound"


@pytest.mark.parametrize("switch", faults.SWITCHES, ids=lambda switch: switch.name)
def test_a_switch_turns_on_and_off(switch: faults.Switch) -> None:
    """Each is a real fault, is off at first, and its second turn undoes the first."""
    current = dict(faults.DEFAULTS)
    assert not switch.is_on(current)
    current |= switch.change(current)
    assert switch.is_on(current)
    assert faults.unnamed(current) == {}
    current |= switch.change(current)
    assert current == faults.DEFAULTS


def test_faults_without_a_switch_are_shown() -> None:
    """`lab fault set` can do more."""
    assert rendering.switches({**faults.DEFAULTS, "imds_seconds": 2.0})["others"] == "Set besides: imds_seconds=2.0"


@pytest.mark.parametrize(
    ("method", "headers", "meant"),
    [
        ("GET", {"host": "127.0.0.1:80"}, True),
        ("GET", {"host": "localhost:80"}, True),
        ("GET", {"host": "evil.example:80"}, False),
        ("GET", {"host": "127.0.0.1:81"}, False),
        ("GET", {}, False),
        ("POST", {"host": "127.0.0.1:80", "origin": "http://127.0.0.1:80"}, True),
        ("POST", {"host": "127.0.0.1:80", "origin": "http://127.0.0.1:81"}, False),
        ("POST", {"host": "127.0.0.1:80", "origin": "null"}, False),
        ("POST", {"host": "127.0.0.1:80"}, False),
    ],
)
def test_who_is_meant(method: str, headers: dict[str, str], *, meant: bool) -> None:
    """A name that somebody else resolves to loopback is not; nor is a form of another page."""
    assert is_meant(Address(80, "secret"), method, Headers(headers)) is meant


def test_the_secret_is_compared_whole() -> None:
    """No beginning of it will do, nor any text that is no ASCII."""
    address = Address(80)
    assert is_token(address, address.token)
    assert not any(is_token(address, text) for text in ("", address.token[:-1], "é"))
    assert address.token not in repr(address)


async def test_a_flood_is_counted_and_a_slow_reader_gets_a_summary() -> None:
    """A batch has so many rows and no more; what a reader does not take becomes one message."""
    feed = Feed()
    feed.show_faults(faults.DEFAULTS)
    reader = feed.read()
    for _ in range(3):
        await anext(reader)  # what is there at first
    flood = [azure(0.0001 * number, "keyvault", f"default/pod-{number}") for number in range(ROWS_LIMIT * 2)]
    for _ in range(QUEUE_LIMIT * 2):
        feed.take(flood)
        feed.flush()
    feed.flush()
    batches: list[dict[str, Any]] = []
    while sum(batch["requests"] for batch in batches) < len(flood) * QUEUE_LIMIT * 2:
        batches.append(await _batch(reader))
        assert len(batches) <= QUEUE_LIMIT
    assert sum(batch["requests"] for batch in batches) == len(flood) * QUEUE_LIMIT * 2
    assert batches[0]["rows"] == []
    assert batches[0]["missed"] == batches[0]["requests"] > len(flood)
    assert {len(batch["rows"]) for batch in batches[1:]} == {ROWS_LIMIT}


async def _batch(reader: AsyncIterator[str]) -> dict[str, Any]:
    name, _, data = (await anext(reader)).strip().partition("\n")
    assert name == "event: batch"
    batch: dict[str, Any] = json.loads(data.removeprefix("data: "))
    return batch
