"""A pod that asks for its token every 10 ms, each time on a new connection: `quiet.py ADDRESS OWNER`, until SIGTERM.

It asks from ADDRESS, at METADATA where the environment has that. The last line printed is one JSON object: the
milliseconds of each answer, after how many seconds each was asked for, and what was no token of OWNER. The standard
library alone.
"""

import json
import os
import signal
import socket
import sys
import threading
import time
from typing import Any

IMDS = (os.environ.get("METADATA", "169.254.169.254"), 80)
REQUEST = (
    b"GET /metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://vault.azure.net HTTP/1.1\r\n"
    b"Host: 169.254.169.254\r\nMetadata: true\r\n\r\n"
)
PAUSE_SECONDS = 0.01
LIMIT_SECONDS = 10.0


def ask(address: str) -> str:
    """Ask once. Return the token, or what came in its place."""
    received = b""
    try:
        with socket.create_connection(IMDS, LIMIT_SECONDS, (address, 0)) as connection:
            connection.sendall(REQUEST)
            while not received.endswith(b"}"):
                piece = connection.recv(65536)
                if not piece:
                    break
                received += piece
        return str(json.loads(received.partition(b"\r\n\r\n")[2]).get("access_token", received[:200].decode()))
    except (OSError, ValueError) as error:
        return f"{type(error).__name__}: {error} after {received[:100]!r}"


def main(address: str, owner: str) -> dict[str, Any]:
    """Ask until SIGTERM."""
    end = threading.Event()
    signal.signal(signal.SIGTERM, lambda _number, _frame: end.set())
    milliseconds: list[float] = []
    seconds: list[float] = []
    failures: list[str] = []
    print("begun", flush=True)
    beginning = time.perf_counter()
    while not end.is_set():
        start = time.perf_counter()
        seconds.append(round(start - beginning, 3))
        token = ask(address)
        milliseconds.append(round((time.perf_counter() - start) * 1e3, 3))
        if not token.startswith(f"token of {owner} for "):
            failures.append(token)
        time.sleep(PAUSE_SECONDS)
    return {"milliseconds": milliseconds, "seconds": seconds, "failures": failures}


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
