"""`python -m keyvault_app`: serve until stopped. Exit status 2 when the environment does not say what to show."""

import os
import signal
import sys
import threading

from keyvault_app import settings, web


def main() -> int:
    """Serve until SIGTERM or Ctrl-C; the exit status."""
    try:
        found = settings.read(os.environ)
    except settings.SettingsError as error:
        print(f"keyvault_app: {error}", file=sys.stderr)
        return 2
    # Blocked before any thread starts: the signals wait for sigwait below. An exception out of a signal's handler
    # could come anywhere in the server's code, which would now and then report it as a request's and go on.
    ends = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    with web.server(found.port, web.secret_reader(found)) as server:
        threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True).start()  # seconds that shutdown() takes
        print(f"showing secret {found.secret} of {found.vault_url} on port {server.server_port}", flush=True)
        signal.sigwait(ends)
        server.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
