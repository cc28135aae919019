"""Finds and removes the iptables chain of aad-pod-identity, once NMI's own redirect stands.

Its chain does no harm while ours hooks in earlier, but would win again after an uninstall, and send pods to a port
where nobody listens.
"""

import logging
import shutil
from pathlib import Path
from typing import Any

from podidentity.linux.commands import CommandError, run
from podidentity.linux.nftables import list_table

_log = logging.getLogger(__name__)

_OLD_TABLES = Path("/proc/thread-self/net/ip_tables_names")
CHAIN = "aad-metadata"  # aad-pod-identity, pkg/nmi/iptables


async def retire_upstream_chain() -> bool:
    """Unhook and delete aad-pod-identity's chain from both of iptables' back-ends. True when there was one.

    Raises `HostError`.
    """
    return any([await _retire_nft(), await _retire_legacy()])


async def _retire_nft() -> bool:
    """In one transaction, through nft: our image needs no iptables for it."""
    objects = await list_table("ip", "nat")
    if objects is None or not any(_is_chain(item) for item in objects):
        return False
    hooks = [rule for item in objects if (rule := item.get("rule")) and _jumps(rule)]
    lines = [f"delete rule ip nat {rule['chain']} handle {rule['handle']}" for rule in hooks]
    lines += [f"flush chain ip nat {CHAIN}", f"delete chain ip nat {CHAIN}"]
    await run("nft", "-f", "-", text="\n".join(lines) + "\n")
    return True


async def _retire_legacy() -> bool:
    if not _has_old_tables():
        return False  # and looking with its program would load them into the kernel
    program = shutil.which("iptables-legacy")
    if program is None:
        _log.info("old iptables tables are in use; if chain %s is in them, remove it with iptables-legacy", CHAIN)
        return False
    try:
        output = await run(program, "-w", "-t", "nat", "-S", "PREROUTING")
    except CommandError:
        return False  # a kernel without the old tables has no old chain either
    hooks = [line for line in output.splitlines() if line.endswith(f"-j {CHAIN}")]
    for line in hooks:
        await run(program, "-w", "-t", "nat", "-D", *line.split()[1:])
    for command in ("-F", "-X"):
        if hooks:
            await run(program, "-w", "-t", "nat", command, CHAIN)
    return bool(hooks)


def _has_old_tables() -> bool:
    try:
        return "nat" in _OLD_TABLES.read_text().split()
    except OSError:
        return False


def _is_chain(item: dict[str, Any]) -> bool:
    return bool(item.get("chain", {}).get("name") == CHAIN)


def _jumps(rule: dict[str, Any]) -> bool:
    verdicts = (part.get("jump") or part.get("goto") or {} for part in rule["expr"])
    return any(verdict.get("target") == CHAIN for verdict in verdicts)
