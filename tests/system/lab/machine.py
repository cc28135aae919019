"""A machine of the test's own, for what must leave a machine as it was: a network and mounts that nobody else changes.

The real one is everybody's: a container engine that starts something meanwhile adds interfaces, rules and mounts.
"""

import contextlib
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from system.lab.running import User

_PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
_COMMANDS = ("nft list ruleset", "ip rule", "ip route show table all", "ip link", "cat /etc/hosts")
_FORWARDING = "cat /proc/sys/net/ipv4/ip_forward"


@dataclass(frozen=True, slots=True)
class Machine:
    """A network and mounts of their own, which the process `pid` holds open."""

    pid: int

    @property
    def entry(self) -> tuple[str, ...]:
        """What stands before a command to run it there; the process stays the same."""
        user = () if os.geteuid() == 0 else ("--user", "--preserve-credentials")
        return ("nsenter", f"--target={self.pid}", *user, "--net", "--mount", "--")

    @property
    def user(self) -> User:
        """Who runs labs there."""
        return User((*self.entry, sys.executable))

    def state(self) -> dict[str, str]:
        """Return all that a lab could have changed of it."""
        state = {command: self._run(command) for command in (*_COMMANDS, _FORWARDING)}
        return {**state, "mounts": Path(f"/proc/{self.pid}/mountinfo").read_text()}

    def _run(self, command: str) -> str:
        words = [*self.entry, *shlex.split(command)]
        return subprocess.run(words, env={"PATH": _PATH}, capture_output=True, text=True, check=True).stdout


@contextlib.contextmanager
def machine(folder: Path) -> Iterator[Machine]:
    """Make one; `folder` is for its files."""
    hosts = folder / "hosts"
    hosts.write_bytes(Path("/etc/hosts").read_bytes())
    script = f"ip link set lo up && mount --bind {shlex.quote(str(hosts))} /etc/hosts && echo ready && exec cat"
    user = () if os.geteuid() == 0 else ("--user", "--map-root-user")
    command = ["setpriv", "--pdeathsig=KILL", "--", "unshare", *user, "--net", "--mount", "sh", "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={"PATH": _PATH}) as holder:
        try:
            assert holder.stdout
            assert holder.stdout.readline() == b"ready\n"
            yield Machine(holder.pid)
        finally:
            holder.kill()
