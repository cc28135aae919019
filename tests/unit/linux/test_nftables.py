"""Tables as text, and the comparison with what the kernel has: the parts that need no kernel."""

from typing import Any

import pytest

from podidentity.errors import HostError
from podidentity.linux import interception
from podidentity.linux.interception import Forbidden, Interception
from podidentity.linux.nftables import Table, _compare, render

WHAT = Interception("169.254.169.254", 80, "10.0.0.4", 2579, ("eth0",))


def held(rule: list[dict[str, Any]], **chain: Any) -> list[dict[str, Any]]:
    """Return what `nft -j` prints of the guard."""
    whole = {"name": "forward", "type": "filter", "hook": "forward", "prio": -10} | chain
    return [{"metainfo": {}}, {"chain": whole}, {"rule": {"chain": whole["name"], "handle": 2, "expr": rule}}]


MATCH = {"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "daddr"}}, "right": "169.254.169.254"}}
COUNTER = {"counter": {"packets": 5, "bytes": 300}}


def test_a_table_is_replaced_in_one_text() -> None:
    """The text declares the table, deletes it and defines it in one transaction, also the first time."""
    text = render(interception.guard(Forbidden(WHAT.metadata_address)))
    lines = text.splitlines()
    assert lines[:2] == ["table inet podidentity_guard", "delete table inet podidentity_guard"]
    assert "ip daddr 169.254.169.254 counter drop" in text


@pytest.mark.parametrize(
    ("uplinks", "start"), [((), "fib"), (("eth0",), 'iifname != "eth0" '), (("b", "a"), 'iifname != { "a", "b" } ')]
)
def test_every_uplink_is_left_alone(uplinks: tuple[str, ...], start: str) -> None:
    """Packets that come in on an uplink are not redirected: they are not of a pod on this node."""
    what = Interception("169.254.169.254", 80, "10.0.0.4", 2579, uplinks)
    assert interception.redirect(what).chains[0].rules[0].startswith(start)


def test_an_interface_name_cannot_carry_a_rule() -> None:
    """An interface name that could end the quotes is refused."""
    what = Interception("169.254.169.254", 80, "10.0.0.4", 2579, ('x" accept #',))
    with pytest.raises(HostError, match="cannot be given"):
        interception.redirect(what)


@pytest.mark.parametrize(
    ("objects", "wrong"),
    [
        (held([MATCH, COUNTER, {"drop": None}]), 0),
        (held([MATCH, COUNTER, {"accept": None}]), 1),
        (held([MATCH, {"drop": None}]), 1),
        (held([COUNTER, {"drop": None}]), 1),
        (held([MATCH, COUNTER, {"drop": None}], prio=0), 1),
        (held([MATCH, COUNTER, {"drop": None}], hook="input"), 1),
        (held([MATCH, COUNTER, {"drop": None}], name="other"), 1),
        ([*held([MATCH, COUNTER, {"drop": None}]), held([{"accept": None}])[2]], 1),
        ([], 1),
    ],
)
def test_any_difference_is_found(objects: list[dict[str, Any]], wrong: int) -> None:
    """Another verdict, hook or priority, and a rule too many or too few, are one sentence each."""
    table: Table = interception.bridge_guard(Forbidden(WHAT.metadata_address))
    assert len(_compare(table, objects)) == wrong
