"""What podidentity asks of every HTTP answer: a body with an end, a pause with one, JSON or nothing, a token."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx2

LONGEST_PAUSE_SECONDS = 3600.0
"""What a Retry-After may ask at most: a confused server or proxy must not silence a daemon for hours."""


def retry_after_seconds(response: httpx2.Response, now: datetime | None = None) -> float | None:
    """Return the pause that a Retry-After asks for, in seconds or as a date; None without one (RFC 9110, 10.2.3)."""
    text = response.headers.get("Retry-After", "").strip()
    if text.isascii() and text.replace(".", "", 1).isdecimal():
        return min(float(text), LONGEST_PAUSE_SECONDS)
    try:
        seconds = (parsedate_to_datetime(text) - (now or datetime.now(UTC))).total_seconds()
    except (TypeError, ValueError):
        return None
    return min(max(seconds, 0.0), LONGEST_PAUSE_SECONDS)


async def read_body(response: httpx2.Response, limit_bytes: int) -> bytes | None:
    """Return the body of a response that is being streamed; None when it is longer than `limit_bytes`."""
    body = bytearray()
    async for piece in response.aiter_bytes():
        body += piece
        if len(body) > limit_bytes:
            return None
    return bytes(body)


def json_object(body: bytes) -> Mapping[str, Any]:
    """Return the JSON object that `body` is; an empty one for anything else."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def access_token(document: Mapping[str, Any]) -> str:
    """Return the access token of an answer (RFC 6749, section 5.1). Raises `ValueError` for all but a text."""
    token = document.get("access_token")
    if not isinstance(token, str) or not token:
        raise ValueError("no access token")
    return token
