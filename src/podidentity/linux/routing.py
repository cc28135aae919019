"""This host's routes: the second guard (two `ip rule`s), the uplinks, the node's own address.

The rules do not depend on netfilter: while somebody flushes the whole ruleset, they alone keep pods from IMDS.
"""

import ipaddress
import json
import socket
from typing import Any

from podidentity.errors import HostError
from podidentity.linux.commands import run

_OWN_PREFERENCE = 90  # before anything a network plugin uses for pods, after `local`
_OTHERS_PREFERENCE = 91


async def missing_rules(address: str) -> tuple[str, ...]:
    """Return which of the two rules for `address` are missing, as arguments of `ip rule add`. Raises `HostError`."""
    rules: list[dict[str, Any]] = json.loads(await run("ip", "-j", "-4", "rule", "show"))
    return tuple(
        text for text, facts in _guard_rules(address).items() if not any(_holds(rule, facts) for rule in rules)
    )


async def ensure_rules(address: str) -> bool:
    """Let this host itself reach `address`, but forward nobody's packets there. True when a rule had to be added."""
    missing = await missing_rules(address)
    if missing:
        # The node's own way first: the other one alone would cut the daemon off.
        await run("ip", "-4", "-batch", "-", text="".join(f"rule add {rule}\n" for rule in missing))
    return bool(missing)


async def remove_rules(address: str) -> None:
    """Take away what `ensure_rules` added. Raises `HostError`."""
    missing = await missing_rules(address)
    present = [rule for rule in reversed(tuple(_guard_rules(address))) if rule not in missing]
    if present:
        await run("ip", "-4", "-batch", "-", text="".join(f"rule del {rule}\n" for rule in present))


async def uplinks(address: str) -> tuple[str, ...]:
    """Return the interfaces through which this host reaches `address` and the world, sorted. Raises `HostError`.

    Every route counts that covers the address, also one that another has precedence over: what comes in there is no
    pod's. Only the main table: network plugins keep default routes of their own in others, through pods' interfaces.
    """
    routes: list[dict[str, Any]] = json.loads(await run("ip", "-j", "-4", "route", "show", "table", "main") or "[]")
    names = {hop["dev"] for route in routes if _covers(route, address) for hop in _hops(route)}
    return tuple(sorted(names - {"lo"}))


def node_address(metadata_address: str) -> str:
    """Return the address from which this host reaches `metadata_address`. Raises `HostError` when it has no way."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((metadata_address, 80))  # sends nothing: a UDP socket only looks the route up
        except OSError:
            message = f"this host has no route to {metadata_address}; set HOST_IP to the node's address"
            raise HostError(message) from None
        address: str = probe.getsockname()[0]
        return address


def is_own_address(address: str) -> bool:
    """Whether an address is one of this host's: what a host sends to itself comes from that very address."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, 80))  # sends nothing, as above
        except OSError:
            return False
        return bool(probe.getsockname()[0] == address)


def _guard_rules(address: str) -> dict[str, dict[str, Any]]:
    return {
        f"pref {_OWN_PREFERENCE} to {address} iif lo lookup main": {
            "priority": _OWN_PREFERENCE,
            "dst": address,
            "iif": "lo",
            "table": "main",
        },
        f"pref {_OTHERS_PREFERENCE} to {address} prohibit": {
            "priority": _OTHERS_PREFERENCE,
            "dst": address,
            "action": "prohibit",
        },
    }


def _holds(rule: dict[str, Any], facts: dict[str, Any]) -> bool:
    narrowed = {"fwmark", "srclen", "oif", "ipproto", "sport", "dport", "not"}  # a rule with one of these covers less
    if narrowed & rule.keys() or rule.get("src") != "all" or rule.get("iif") != facts.get("iif"):
        return False
    return all(rule.get(key) == value for key, value in facts.items())


def _covers(route: dict[str, Any], address: str) -> bool:
    network = str(route.get("dst", ""))
    return network == "default" or ipaddress.IPv4Address(address) in ipaddress.IPv4Network(network)


def _hops(route: dict[str, Any]) -> list[dict[str, Any]]:
    hops: list[dict[str, Any]] = route.get("nexthops") or [route]
    return [hop for hop in hops if "dev" in hop]
