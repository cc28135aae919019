"""Tables of rules as values: loads them in one transaction, reads them back and says how they differ.

A rule is written once, as the text that `nft` is given; `differences` prints what the kernel holds in the same words
and compares. The words are our own and not those of `nft list`, which change between its versions. Which tables there
are is decided in `interception`. Called by it and by NMI's redirect.
"""

import json
from dataclasses import dataclass
from typing import Any

from podidentity.linux.commands import CommandError, run


@dataclass(frozen=True, slots=True)
class Chain:
    """A base chain: where it hooks in, at which priority (a number, as the kernel keeps it), and its rules."""

    name: str
    type: str
    hook: str
    priority: int
    rules: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Set:
    """A named set: the nft type of its elements, and each element in nft's words, sorted."""

    name: str
    type: str
    elements: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """A table with everything in it. `family` is `ip`, `inet` or `bridge`."""

    family: str
    name: str
    chains: tuple[Chain, ...]
    sets: tuple[Set, ...] = ()


def render(table: Table) -> str:
    """Write the text that puts exactly this table in place of whatever carries its name.

    Declared before it is deleted, so that the text also works the first time; one file is one transaction, so that
    no packet sees the host between the two.
    """
    lines = [f"table {table.family} {table.name}", f"delete table {table.family} {table.name}"]
    lines.append(f"table {table.family} {table.name} {{")
    for one in table.sets:
        lines += [f"  set {one.name} {{", f"    type {one.type}"]
        lines += [f"    elements = {{ {', '.join(one.elements)} }}"] if one.elements else []
        lines.append("  }")
    for chain in table.chains:
        lines.append(f"  chain {chain.name} {{")
        lines.append(f"    type {chain.type} hook {chain.hook} priority {chain.priority}; policy accept;")
        lines.extend(f"    {rule}" for rule in chain.rules)
        lines.append("  }")
    lines.append("}")
    return "\n".join(lines) + "\n"


async def replace(*tables: Table) -> None:
    """Put `tables` in place, all in one transaction. Raises `HostError`."""
    await run("nft", "-f", "-", text="".join(render(table) for table in tables))


async def remove(*tables: tuple[str, str]) -> None:
    """Remove tables, given as (family, name), that may or may not exist. Raises `HostError`."""
    lines = [f"table {family} {name}\ndelete table {family} {name}\n" for family, name in tables]
    await run("nft", "-f", "-", text="".join(lines))


async def differences(table: Table) -> tuple[str, ...]:
    """Say what the kernel holds otherwise than `table`, one sentence each. Raises `HostError`."""
    held = await listed(table.family, table.name)
    if held is None:
        return (f"table {table.family} {table.name} is missing",)
    return tuple(_compare(table, held))


async def listed(family: str, name: str) -> list[dict[str, Any]] | None:
    """List a table's objects as `nft -j` tells them; None when there is no such table. Raises `HostError`."""
    try:
        told = await run("nft", "-j", "list", "table", family, name)
    except CommandError as error:
        if "No such file or directory" in error.said:
            return None
        raise
    objects: list[dict[str, Any]] = json.loads(told)["nftables"]
    return objects


def _compare(table: Table, held: list[dict[str, Any]]) -> list[str]:
    chains = {chain["name"]: chain for item in held if (chain := item.get("chain"))}
    found: dict[str, list[str]] = {}
    for item in held:
        if rule := item.get("rule"):
            found.setdefault(rule["chain"], []).append(" ".join(_say(part) for part in rule["expr"]))
    wrong = []
    for chain in table.chains:
        where = f"table {table.family} {table.name} chain {chain.name}"
        there = chains.get(chain.name)
        if there is None:
            wrong.append(f"{where} is missing")
        elif (there.get("type"), there.get("hook"), there.get("prio")) != (chain.type, chain.hook, chain.priority):
            wrong.append(f"{where} hooks in at another place")
        elif found.get(chain.name, []) != [_as_listed(rule) for rule in chain.rules]:
            wrong.append(f"{where} holds {found.get(chain.name, [])} instead of {list(chain.rules)}")
    return wrong + _compare_sets(table, held)


def _compare_sets(table: Table, held: list[dict[str, Any]]) -> list[str]:
    found = {one["name"]: elements(one) for item in held if (one := item.get("set"))}
    return [
        f"table {table.family} {table.name} set {one.name} does not hold what it should"
        for one in table.sets
        if found.get(one.name) != one.elements
    ]


def elements(held: dict[str, Any]) -> tuple[str, ...]:
    """Write the elements of a set that `listed` found as `Set` has them."""
    types = held["type"] if isinstance(held["type"], list) else [held["type"]]
    parts = (one["concat"] if isinstance(one, dict) else [one] for one in held.get("elem", ()))
    written = (
        " . ".join(f'"{part}"' if kind == "ifname" else str(part) for kind, part in zip(types, one, strict=True))
        for one in parts
    )
    return tuple(sorted(written))


def _as_listed(rule: str) -> str:
    """`nft` leaves out of its list what an ARP field depends on, however it was written."""
    return rule.replace("meta protocol arp ", "")


def _say(part: dict[str, Any]) -> str:
    """One expression of a rule in the words that `interception` uses for it; anything else as its JSON."""
    match part:
        case {"match": {"op": operator, "left": left, "right": right}}:
            return _say_match(_say_left(left), "" if operator == "==" else f"{operator} ", right)
        case {"counter": _}:
            return "counter"
        case {"drop": None}:
            return "drop"
        case {"dnat": {"addr": str(address), "port": int(port)}}:
            return f"dnat to {address}:{port}"
        case _:
            return json.dumps(part, sort_keys=True)


def _say_left(left: Any) -> str:
    match left:
        case {"meta": {"key": "protocol"}}:
            return "meta protocol"
        case {"meta": {"key": str(key)}}:
            return key
        case {"payload": {"protocol": str(protocol), "field": str(field)}}:
            return f"{protocol} {field}"
        case {"fib": {"result": "type", "flags": ["saddr"] | "saddr"}}:
            return "fib saddr type"
        case {"fib": {"result": "oif" | "check", "flags": ["saddr", "iif"]}}:
            return "fib saddr . iif oif"
        case {"concat": [*parts]}:
            return " . ".join(_say_left(part) for part in parts)
        case _:
            return json.dumps(left, sort_keys=True)


def _say_match(left: str, operator: str, right: Any) -> str:
    if right is False:
        return f"{left} missing"
    return f"{left} {operator}{_say_right(right, quoted=left in {'iifname', 'oifname'})}"


def _say_right(right: Any, *, quoted: bool) -> str:
    match right:
        case {"set": [*members]}:
            return "{ " + ", ".join(sorted(_say_right(member, quoted=quoted) for member in members)) + " }"
        case str() if quoted and not right.startswith("@"):  # the name of a set stands bare
            return f'"{right}"'
        case str() | int():
            return str(right)
        case _:
            return json.dumps(right, sort_keys=True)
