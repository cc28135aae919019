"""Every table that NMI keeps in place reads back as it is: else it would be repaired for ever."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.root

SCRIPT = """
import asyncio
from podidentity.core.tokens.bridge_ports import Place, Port
from podidentity.linux import interception, nftables
from podidentity.linux.interception import Forbidden, Interception, Uplink

port = Port(7, "veth1", frozenset({"10.244.0.5"}), "02:00:00:00:00:05")
what = Interception("169.254.169.254", 80, "10.0.0.4", 2579, ("eth0", "eth1"))
uplinks = [Uplink(1, "lo", ""), Uplink(7, "lo", "02:00:00:00:00:07"), Uplink(8, "lo", "02:00:00:00:00:08", vlans=True)]
tables = {
    "guard": interception.guard(Forbidden("169.254.169.254")),
    "bridge guard": interception.bridge_guard(Forbidden("169.254.169.254")),
    "guard of more": interception.guard(Forbidden("169.254.169.254", wireserver=True)),
    "uplinks": interception.uplink_guard(Forbidden("169.254.169.254", wireserver=True), uplinks, ["10.0.0.4"]),
    "redirect": interception.redirect(what),
    "ports": interception.ports("169.254.169.254", [port], [Place(port, ("10.244.0.5",))]),
    "no ports": interception.ports("169.254.169.254", [], []),
}

async def main():
    for name, table in tables.items():
        await nftables.replace(table)
        print(name, *await nftables.differences(table), sep=": ", flush=True)

asyncio.run(main())
"""


def test_what_was_loaded_reads_back_the_same() -> None:
    """With pods and without, in a kernel of this machine."""
    command = ["unshare", "--map-root-user", "--net", "--", sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "guard",
        "bridge guard",
        "guard of more",
        "uplinks",
        "redirect",
        "ports",
        "no ports",
    ]
