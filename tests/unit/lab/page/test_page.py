"""What the page shows, and whose requests it answers."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.datastructures import Headers

from podidentity_lab.cli import log
from podidentity_lab.page import faults, rendering
from podidentity_lab.page.door import Address, is_meant, is_own, is_token
from podidentity_lab.page.feed import EVENTS_LIMIT, QUEUE_LIMIT, READERS_LIMIT, ROWS_LIMIT, Feed
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
    """Names of pods, log messages and names of faults are text, wherever they appear."""
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
    """Names of secrets are shown, and their values are not, although the state has them."""
    text = json.dumps(rendering.groups(list(groups().values())))
    assert "greeting" in text
    assert "a secret value" not in text
    assert "a private key" not in text
    assert "a client secret" not in text


def test_a_group_is_bounded_and_says_so() -> None:
    """A group shows a bounded number of items and counts the others."""
    pods = [
        {"metadata": {"name": f"p{number}", "namespace": "default"}, "spec": {}} for number in range(ITEMS_LIMIT + 2)
    ]
    group = groups(Objects(pods=pods))["pods"]
    assert (len(group.items), group.total) == (ITEMS_LIMIT, ITEMS_LIMIT + 2)
    assert "2 more are not shown" in rendering.groups([group])["pods"]


def test_an_identity_shows_its_binding_and_pods() -> None:
    """An identity shows its binding and each pod's state, or that it is not bound."""
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
    """Each switch sets a fault that exists, is off at first, and undoes its change when turned again."""
    current = dict(faults.DEFAULTS)
    assert not switch.is_on(current)
    current |= switch.change(current)
    assert switch.is_on(current)
    assert faults.unnamed(current) == {}
    current |= switch.change(current)
    assert current == faults.DEFAULTS


def test_faults_without_a_switch_are_shown() -> None:
    """Faults set with `lab fault set` that have no switch are shown as text."""
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
    """A request for another host, or a form of another page, is not meant for this page."""
    assert is_meant(Address(80, "secret"), method, Headers(headers)) is meant


@pytest.mark.parametrize(
    ("site", "own"), [(None, True), ("none", True), ("same-origin", True), ("same-site", False), ("cross-site", False)]
)
def test_who_sends(site: str | None, *, own: bool) -> None:
    """A request that another page makes is refused even with the cookie: another port of the host is the same site."""
    assert is_own(Headers({"sec-fetch-site": site} if site else {})) is own


def test_the_secret_is_compared_whole() -> None:
    """A part of the secret, and a text that is not ASCII, are refused; the secret is not in a repr."""
    address = Address(80)
    assert is_token(address, address.token)
    assert not any(is_token(address, text) for text in ("", address.token[:-1], "é"))
    assert address.token not in repr(address)
    assert address.folder not in repr(address)


async def test_a_flood_is_counted_and_a_slow_reader_gets_fewer_batches() -> None:
    """A batch has a bounded number of rows and the totals; batches that a reader does not take are left out."""
    feed = Feed()
    feed.show_faults(faults.DEFAULTS)
    reader = feed.read()
    for _ in range(3):
        await anext(reader)  # the state at the beginning
    flood = [azure(0.0001 * number, "keyvault", f"default/pod-{number}") for number in range(ROWS_LIMIT * 2)]
    for _ in range(QUEUE_LIMIT * 2):
        feed.take(flood)
        feed.flush()
    feed.flush()
    batches = [await _batch(reader)]
    while batches[-1]["requests"] < len(flood) * QUEUE_LIMIT * 2:
        batches.append(await _batch(reader))
    assert 0 < len(batches) <= QUEUE_LIMIT
    assert batches[-1]["requests"] == len(flood) * QUEUE_LIMIT * 2
    assert {len(batch["rows"]) for batch in batches} == {ROWS_LIMIT}
    numbers = [number for batch in batches for number, _ in batch["rows"]]
    assert numbers == sorted(numbers)


async def test_a_slow_reader_misses_no_change() -> None:
    """Of changes that a reader does not take, the latest of each group arrives."""
    feed = Feed()
    reader = feed.read()
    for _ in range(3):
        await anext(reader)
    for number in range(QUEUE_LIMIT * 2):
        pods = Group("pods", "Pods", "", (Item(f"pod-{number}"),), 1)
        feed.show_groups([Group("nodes", "Nodes", "", (Item("node-0"),), 1), pods])
    changes: dict[str, str] = {}
    while f"pod-{QUEUE_LIMIT * 2 - 1}" not in changes.get("pods", ""):
        _, _, data = (await anext(reader)).strip().partition("\n")
        changes |= json.loads(data.removeprefix("data: "))
    assert "node-0" in changes["nodes"]


async def test_a_refusal_that_comes_later_is_counted_once() -> None:
    """A request whose last station refuses it after its row was sent is one refused request."""
    feed = Feed()
    for event in (nmi(0.5), azure(0.6, "keyvault", "default/batch", status=403), nmi(1.5, status=404)):
        feed.take([event])
        feed.flush()
    feed.flush()
    assert (feed.totals.requests, feed.totals.refusals) == (2, 2)


async def test_what_does_not_fit_is_counted() -> None:
    """Events that come faster than they are sent, and are given up, are counted as unread."""
    feed = Feed()
    for _ in range(2):
        feed.take([azure(0.1, "keyvault", "default/pod")] * (EVENTS_LIMIT // 2 + 5))
    assert feed.totals.unread == 10


async def test_more_browsers_than_it_serves_get_nothing() -> None:
    """However many ask at once, only as many browsers as the page serves are sent anything."""
    feed = Feed()
    readers = [feed.read() for _ in range(READERS_LIMIT + 3)]
    assert not feed.is_full
    firsts = [await anext(reader, "") for reader in readers]
    assert [bool(first) for first in firsts] == [True] * READERS_LIMIT + [False] * 3


async def _batch(reader: AsyncIterator[str]) -> dict[str, Any]:
    name, _, data = (await anext(reader)).strip().partition("\n")
    assert name == "event: batch"
    batch: dict[str, Any] = json.loads(data.removeprefix("data: "))
    return batch


@pytest.mark.parametrize("service", log.SERVICES)
def test_every_service_of_azure_has_a_place_on_the_page(service: str) -> None:
    """A request to any of them is shown with its name, behind the token that it used."""
    trails = Trails()
    trails.add(azure(0.0, "entra", "host"))
    trail = trails.add(azure(0.1, service, "host"))
    assert log.SERVICES[service].removeprefix("an ") in rendering.row(trail)
