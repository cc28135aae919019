"""Runs the programs that change this host: `nft`, `ip`, `conntrack`. Decides nothing.

Programs and not libraries: they run rarely (start-up, a repair, an uninstall), and a reader can repeat by hand exactly
what the daemon did.
"""

import asyncio
import subprocess

from podidentity.errors import HostError

TIME_LIMIT_SECONDS = 20.0  # nft answers in 10 ms; a host on which it hangs must fail the start, not hang it

_PACKAGES = {"nft": "nftables", "ip": "iproute2", "conntrack": "conntrack"}


class CommandError(HostError):
    """A program failed: its exit status, and what it wrote to standard error (`output`)."""

    def __init__(self, program: str, arguments: tuple[str, ...], status: int, output: str) -> None:
        self.status = status
        self.output = output
        first_line = output.splitlines()[0] if output else "without a word"
        super().__init__(
            f"`{' '.join((program, *arguments))}` failed with status {status}: {first_line}. {_advice(output)}"
        )


async def run(program: str, *arguments: str, text: str = "") -> str:
    """Run `program` with `text` on its standard input; return what it wrote to standard output.

    Raises `CommandError` when it fails and `HostError` when it is not installed or does not end in time.
    """
    try:
        # In a thread: a pipe of the event loop's raises when a program ends before it has read all of its input.
        process = await asyncio.to_thread(
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
        raise HostError(f"the program `{program}` is not on PATH; install the Debian package {package}") from None
    except subprocess.TimeoutExpired:
        message = f"`{program}` did not end within {TIME_LIMIT_SECONDS:g} s; look at the load of this host"
        raise HostError(message) from None
    if process.returncode:
        raise CommandError(program, arguments, process.returncode, process.stderr.strip())
    return process.stdout


def _advice(output: str) -> str:
    if "ermission denied" in output or "not permitted" in output:
        return "Run as root with the capability NET_ADMIN."
    if "No such file or directory" in output or "not supported" in output or "Could not process rule" in output:
        return "The kernel may lack a netfilter feature: nf_tables, nft_nat, nft_fib and nf_conntrack are needed."
    return "Repeat the command by hand to see more."
