"""Notices that azure.json changed: a rotated secret must not need a restart.

Looks at the file every few seconds, because a file of the host that is mounted into a pod may be replaced in ways that
no notification tells. A new file that is broken changes nothing: what was read before stays, with one warning.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn

from podidentity.azure.cloud_config import ENVIRONMENT_FILE_VARIABLE, CloudConfig, load_cloud_config
from podidentity.errors import ConfigurationError

LOOK_SECONDS = 5.0
_log = logging.getLogger(__name__)
_Stamp = tuple[tuple[int, int, int] | None, ...]


class ReloadedConfig:
    """The configuration as it is now. Raises ConfigurationError when it cannot be read at first."""

    def __init__(self, path: str, environ: Mapping[str, str]) -> None:
        self._path = path
        self._environ = environ
        self._files = tuple(filter(None, (path, environ.get(ENVIRONMENT_FILE_VARIABLE, ""))))
        self._stamp = self._look()
        self.current = load_cloud_config(path, environ)

    async def run(self, on_change: Callable[[CloudConfig], None]) -> NoReturn:
        """Call `on_change` with each new configuration, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            fresh = self.reload()
            if fresh is not None:
                on_change(fresh)

    def reload(self) -> CloudConfig | None:
        """Return the new configuration when the file changed and says something else, otherwise None."""
        stamp = self._look()
        if stamp == self._stamp:
            return None
        self._stamp = stamp
        try:
            fresh = load_cloud_config(self._path, self._environ)
        except ConfigurationError as error:
            _log.warning("azure.json changed and is not used, the former one stays: %s", error)
            return None
        if fresh == self.current:
            return None
        self.current = fresh
        return fresh

    def _look(self) -> _Stamp:
        return tuple(_stamp(Path(file)) for file in self._files)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
