"""A request as an HTTP server hands it over."""

from typing import NamedTuple


class HttpRequest(NamedTuple):
    """A whole request; `path` and `query` are still percent-encoded."""

    method: str
    path: str
    query: str = ""
    content_type: str = ""
    body: bytes = b""
