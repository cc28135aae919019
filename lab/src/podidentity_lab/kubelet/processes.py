"""The PID namespace that the containers of a pod with `shareProcessNamespace` have in common."""

import asyncio
import contextlib
import sys
from dataclasses import dataclass
from pathlib import Path

from podidentity.errors import LabError
from podidentity_lab.kubelet.containers import child_of

# The namespace's first process: its root is an empty directory, so that no container reaches anything by /proc/1/root;
# the kernel takes the orphans away, as it ignores the ends of its children.
_HOLDER = """\
import os, signal, sys
os.chroot(sys.argv[1])
os.chdir("/")
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
print("ok", flush=True)
while True:
    signal.pause()
"""


@dataclass(frozen=True, slots=True)
class Holder:
    """The process that keeps a PID namespace there. `first` is it, as the lab numbers it."""

    process: asyncio.subprocess.Process
    first: int

    async def end(self) -> None:
        """End it, and with it, every process in its namespace."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()


async def hold(folder: Path) -> Holder:
    """Make a PID namespace; its first process has an empty directory in `folder` as its root. Raises `LabError`."""
    root = folder / "processes"
    root.mkdir(parents=True)
    process = await asyncio.create_subprocess_exec(
        *(
            "unshare",
            "--pid",
            "--fork",
            "--kill-child=KILL",
            "--",
            sys.executable,
            "-I",
            "-S",
            "-c",
            _HOLDER,
            str(root),
        ),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
        env={},
    )
    assert process.stdout is not None  # noqa: S101  # it was started with a pipe
    line = (await process.stdout.readline()).decode(errors="replace").strip()
    if line != "ok":
        await process.wait()
        raise LabError(f"the processes of a pod cannot be shared: {line}; leave out shareProcessNamespace")
    return Holder(process, child_of(process.pid))
