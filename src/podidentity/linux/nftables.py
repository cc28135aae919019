"""Netfilter tables as values: loads them in one transaction, reads them back and compares.

A rule is written once, as the text that `nft` is given; `differences` prints what the kernel holds in the same words
and compares. The words are our own and not those of `nft list`, which change between its versions. Which tables there
are is decided in `interception`.
"""

import json
from dataclasses import dataclass
from typing import Any

from podidentity.linux.commands import CommandError, run


@dataclass(frozen=True, slots=True)
class Chain:
    """A base chain: where it hooks in, at which priority (a number, as the kernel keeps it), and its rules.

    `hook` may name a device behind the hook (`egress device "eth0"`), which `nft -j` does not tell.
    """

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
    """A table with everything in it. `family` is `ip`, `inet`, `bridge` or `netdev`."""

    family: str
    name: str
    chains: tuple[Chain, ...]
    sets: tuple[Set, ...] = ()


def render(table: Table) -> str:
    """Return the nft text that puts exactly this table in place of whatever carries its name.

    Declared before it is deleted, so that the text also works the first time; one file is one transaction, so that
    no packet sees the host between the two.
    """
    lines = [f"table {table.family} {table.name}", f"delete table {table.family} {table.name}"]
    lines.append(f"table {table.family} {table.name} {{")
    for item in table.sets:
        lines += [f"  set {item.name} {{", f"    type {item.type}"]
        lines += [f"    elements = {{ {', '.join(item.elements)} }}"] if item.elements else []
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
    """Return how the kernel's table differs from `table`, one sentence each. Raises `HostError`."""
    objects = await list_table(table.family, table.name)
    if objects is None:
        return (f"table {table.family} {table.name} is missing",)
    return tuple(_compare(table, objects))


async def list_table(family: str, name: str) -> list[dict[str, Any]] | None:
    """Return a table's objects as `nft -j` lists them, or None when there is no such table. Raises `HostError`."""
    try:
        output = await run("nft", "-j", "list", "table", family, name)
    except CommandError as error:
        if "No such file or directory" in error.output:
            return None
        raise
    objects: list[dict[str, Any]] = json.loads(output)["nftables"]
    return objects


def _compare(table: Table, objects: list[dict[str, Any]]) -> list[str]:
    chains = {chain["name"]: chain for item in objects if (chain := item.get("chain"))}
    rules: dict[str, list[str]] = {}
    for item in objects:
        if rule := item.get("rule"):
            rules.setdefault(rule["chain"], []).append(" ".join(_say(part) for part in rule["expr"]))
    wrong = []
    for chain in table.chains:
        place = f"table {table.family} {table.name} chain {chain.name}"
        chain_object = chains.get(chain.name)
        if chain_object is None:
            wrong.append(f"{place} is missing")
        elif (chain_object.get("type"), chain_object.get("hook"), chain_object.get("prio")) != (
            chain.type,
            chain.hook.partition(" ")[0],
            chain.priority,
        ):
            wrong.append(f"{place} hooks in at another place")
        elif rules.get(chain.name, []) != [_as_listed(rule) for rule in chain.rules]:
            wrong.append(f"{place} holds {rules.get(chain.name, [])} instead of {list(chain.rules)}")
    return wrong + _compare_sets(table, objects)


def _compare_sets(table: Table, objects: list[dict[str, Any]]) -> list[str]:
    elements_by_name = {set_object["name"]: elements(set_object) for item in objects if (set_object := item.get("set"))}
    return [
        f"table {table.family} {table.name} set {declared.name} does not hold what it should"
        for declared in table.sets
        if elements_by_name.get(declared.name) != declared.elements
    ]


def elements(set_object: dict[str, Any]) -> tuple[str, ...]:
    """Return the elements of a set that `list_table` returned, in the form of `Set.elements`."""
    types = set_object["type"] if isinstance(set_object["type"], list) else [set_object["type"]]
    parts = (element["concat"] if isinstance(element, dict) else [element] for element in set_object.get("elem", ()))
    texts = (
        " . ".join(f'"{part}"' if kind == "ifname" else str(part) for kind, part in zip(types, element, strict=True))
        for element in parts
    )
    return tuple(sorted(texts))


def _as_listed(rule: str) -> str:
    """Return a rule as `nft` lists it: without the match that an ARP field implies, however it was written."""
    return rule.replace("meta protocol arp ", "")


def _say(part: dict[str, Any]) -> str:
    """Return one expression of a rule in the words that `interception` uses for it; any other as its JSON."""
    match part:
        case {"match": {"op": operator, "left": left_side, "right": right}}:
            return _say_match(_say_left(left_side), "" if operator == "==" else f"{operator} ", right)
        case {"counter": _}:
            return "counter"
        case {"drop": None}:
            return "drop"
        case {"dnat": {"addr": str(address), "port": int(port)}}:
            return f"dnat to {address}:{port}"
        case _:
            return json.dumps(part, sort_keys=True)


def _say_left(left_side: Any) -> str:
    match left_side:
        case {"meta": {"key": "protocol"}}:
            return "meta protocol"
        case {"meta": {"key": str(key)}}:
            return key
        case {"payload": {"protocol": str(protocol), "field": str(field)}}:
            return f"{protocol} {field}"
        case {"payload": {"base": str(base), "offset": int(offset), "len": int(length)}}:
            return f"@{base},{offset},{length}"
        case {"fib": {"result": "type", "flags": ["saddr"] | "saddr"}}:
            return "fib saddr type"
        case {"fib": {"result": "oif" | "check", "flags": ["saddr", "iif"]}}:
            return "fib saddr . iif oif"
        case {"concat": [*parts]}:
            return " . ".join(_say_left(part) for part in parts)
        case _:
            return json.dumps(left_side, sort_keys=True)


def _say_match(left_side: str, operator: str, right: Any) -> str:
    if right is False:
        return f"{left_side} missing"
    return f"{left_side} {operator}{_say_right(right, in_quotes=left_side in {'iifname', 'oifname'})}"


def _say_right(right: Any, *, in_quotes: bool) -> str:
    match right:
        case {"set": [*members]}:
            return "{ " + ", ".join(sorted(_say_right(member, in_quotes=in_quotes) for member in members)) + " }"
        case str() if in_quotes and not right.startswith("@"):  # the name of a set stands bare
            return f'"{right}"'
        case str() | int():
            return str(right)
        case _:
            return json.dumps(right, sort_keys=True)
