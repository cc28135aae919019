"""Runs the programs that change this host: `nft`, `ip`, `conntrack`. Decides nothing.

Called by the other modules of this layer only. Programs and not libraries: they run rarely (start-up, a repair, an
uninstall), and a reader can repeat by hand exactly what the daemon did.
"""

import asyncio
import subprocess

from podidentity.errors import HostError

TIME_LIMIT_SECONDS = 20.0  # nft answers in 10 ms; a host on which it hangs must fail the start, not hang it

_PACKAGES = {"nft": "nftables", "ip": "iproute2", "conntrack": "conntrack"}


class CommandError(HostError):
    """A program said no. `status` is its exit status, `said` what it wrote to standard error."""

    def __init__(self, program: str, arguments: tuple[str, ...], status: int, said: str) -> None:
        self.status = status
        self.said = said
        told = said.splitlines()[0] if said else "without a word"
        super().__init__(f"`{' '.join((program, *arguments))}` failed with status {status}: {told}. {_advice(said)}")


async def run(program: str, *arguments: str, text: str = "") -> str:
    """Run `program` with `text` on its standard input; what it wrote to standard output.

    Raises `CommandError` when it fails and `HostError` when it is not installed or does not end in time.
    """
    try:
        # In a thread: a pipe of the event loop's raises when a program ends before it has read all of its input.
        done = await asyncio.to_thread(
            subprocess.run,
            (program, *arguments),
            input=text,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=TIME_LIMIT_SECONDS,
            check=False,
        )
    except FileNotFoundError:
        package = _PACKAGES.get(program, program)
        raise HostError(f"The program `{program}` is not on PATH. Install the Debian package {package}.") from None
    except subprocess.TimeoutExpired:
        told = f"`{program}` did not end within {TIME_LIMIT_SECONDS:g} s; is the host overloaded?"
        raise HostError(told) from None
    if done.returncode:
        raise CommandError(program, arguments, done.returncode, done.stderr.strip())
    return done.stdout


def _advice(said: str) -> str:
    if "ermission denied" in said or "not permitted" in said:
        return "Run as root with the capability NET_ADMIN."
    if "No such file or directory" in said or "not supported" in said or "Could not process rule" in said:
        return "The kernel may lack a netfilter feature: nf_tables, nft_nat, nft_fib and nf_conntrack are needed."
    return "Repeat the command by hand to see more."
