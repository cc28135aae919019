"""`python -m keyvault_app`: serve until stopped. Exit status 2 when the environment does not say what to show."""

import contextlib
import os
import signal
import sys
from types import FrameType

from keyvault_app import settings, web


def main() -> int:
    """Serve until SIGTERM or Ctrl-C; the exit status."""
    try:
        found = settings.read(os.environ)
    except settings.SettingsError as error:
        print(f"keyvault_app: {error}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, _stop)  # a container's first process has no default for it
    with web.server(found.port, web.secret_reader(found)) as server:
        print(f"showing secret {found.secret} of {found.vault_url} on port {server.server_port}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
    return 0


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
