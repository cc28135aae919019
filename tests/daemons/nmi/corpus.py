"""Reads `hostile.txt`: what is sent to NMI byte for byte, and the status that each must get."""

from pathlib import Path
from typing import NamedTuple

TOKEN_PATH = "/metadata/identity/oauth2/token"
QUERY = "?api-version=2018-02-01&resource=https://vault.azure.net"
PLAIN = ("Host: 169.254.169.254", "Metadata: true")
HUNG_UP = 499
"""The status in the table of a connection that is ended without an answer."""

_FILE = Path(__file__).with_name("hostile.txt")


class Hostile(NamedTuple):
    """One row: the heading it stands under, the bytes, and the status of the answer."""

    heading: str
    head: bytes
    status: int


def request(target: str, *headers: str, method: str = "GET", version: str = "HTTP/1.1") -> bytes:
    """Write a request; with no headers given, those of a well-behaved client."""
    lines = (f"{method} {target} {version}", *(headers or PLAIN), "", "")
    return "\r\n".join(lines).encode("latin-1")


def hostile() -> list[Hostile]:
    """Read the table. Each heading says in brackets which part of a request its rows are."""
    rows, kind, heading = [], "", ""
    for line in _FILE.read_text("ascii").splitlines():
        if line.startswith("["):
            kind, _, heading = line[1:].partition("] ")
        elif line and not line.startswith("#"):
            status, _, text = line.partition(" ")
            rows.append(Hostile(heading, _request_with(kind, _unescape(text)), int(status)))
    return rows


def _request_with(kind: str, text: str) -> bytes:
    match kind:
        case "path":
            return request(text + QUERY)
        case "metadata path":
            return request(f"{text}?api-version=2021-02-01")
        case "query":
            return request(f"{TOKEN_PATH}?{text}")
        case "target":
            return request(text.replace("?Q", QUERY))
        case "method":
            return request(TOKEN_PATH + QUERY, method=text)
        case "version":
            return request(TOKEN_PATH + QUERY, version=text)
        case "headers":
            return request(TOKEN_PATH + QUERY, *text.split(" | "))
        case "bytes":
            return text.replace("?Q", QUERY).encode("latin-1")
    raise AssertionError(f"hostile.txt has no part called {kind}")


def _unescape(text: str) -> str:
    return text.encode("ascii").decode("unicode_escape")
