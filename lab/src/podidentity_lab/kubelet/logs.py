"""Containers' logs, for `kubectl logs`: one file for each container, and one for its previous run.

Plain bytes as the program wrote them. The files stay when the pod is gone, until the lab is.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

FOLLOW_SECONDS = 0.2
CHUNK_BYTES = 64 * 1024


class ContainerLogs:
    """The log files of all nodes of a lab, below `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._runs: Callable[[str, str, str], bool] = lambda _namespace, _pod, _container: False

    def follow_while(self, runs: Callable[[str, str, str], bool]) -> None:
        """Have `runs` say whether a container still writes: a log that is followed ends with its container."""
        self._runs = runs

    def path(self, namespace: str, pod: str, container: str) -> Path:
        """Return the path of a container's log."""
        return self._folder / f"{namespace}_{pod}_{container}.log"

    def begin(self, namespace: str, pod: str, container: str) -> Path:
        """Return a new file for a new run; the previous one is kept under another name."""
        path = self.path(namespace, pod, container)
        if path.exists():
            path.replace(path.with_suffix(".previous.log"))
        path.touch(0o600)
        return path

    async def read(
        self, namespace: str, pod: str, container: str, *, follow: bool, tail_lines: int | None
    ) -> AsyncIterator[bytes]:
        """Yield what a container has written; with `follow`, also what it writes until it ends."""
        path = self.path(namespace, pod, container)

        def runs() -> bool:
            return follow and self._runs(namespace, pod, container)

        async for chunk in follow_file(path, _tail_start(path, tail_lines), runs, FOLLOW_SECONDS):
            yield chunk


async def follow_file(
    path: Path, position: int, runs: Callable[[], bool], pause_seconds: float
) -> AsyncIterator[bytes]:
    """Yield what is in a log from `position` on, and what comes until its container does not run any more."""
    while True:
        is_running = runs()  # asked before reading: what comes after is not lost
        while chunk := _read(path, position):
            position += len(chunk)
            yield chunk
        if not is_running:
            return
        await asyncio.sleep(pause_seconds)


def _read(path: Path, position: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(position)
            return file.read(CHUNK_BYTES)
    except FileNotFoundError:
        return b""


def _tail_start(path: Path, lines: int | None) -> int:
    """Return the position at which the last `lines` lines begin."""
    if lines is None or not path.exists():
        return 0
    content = path.read_bytes()
    last_lines = content.splitlines(keepends=True)[-lines:] if lines > 0 else []
    return len(content) - sum(map(len, last_lines))
