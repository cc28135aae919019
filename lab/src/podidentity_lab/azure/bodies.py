"""Bodies of requests to Azure's services: bounded in size, and JSON that can be answered again.

Python's reader takes more than JSON: NaN, infinite numbers, halves of surrogate pairs. Stored, one of them would spoil
every later answer that contains it.
"""

import json
from typing import Any, NoReturn

from starlette.requests import Request

LARGEST = 16 * 2**20
"""Bytes of one body; ARM takes 4 MiB of template and as much of parameters. Blobs have a limit of their own."""
DEEPEST = 200
"""Levels of objects and arrays in one another: ten nested templates, and far from what Python can write again."""
_TOO_DEEP = f"the JSON is nested more than {DEEPEST} levels deep"
_OBJECTS = ("properties", "attributes", "policy", "sku", "identity", "passwordProfile", "passwordCredential")


class TooLargeError(Exception):
    """A body is larger than its service takes; `limit` in bytes."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"The request is too large: the lab takes at most {limit} bytes here.")


class BoundedRequest(Request):
    """A request whose body has at most `LARGEST` bytes, and is an object where it is read as JSON."""

    async def body(self) -> bytes:
        """Return the body. Raises `TooLargeError`."""
        if not hasattr(self, "_body"):
            self._body = await read(self, LARGEST)
        return self._body

    async def json(self) -> Any:
        """Return the body's object. Raises `ValueError` for what is no JSON, and `TypeError` as `check_fields` does."""
        value = loads((await self.body()).decode("utf-8-sig"))
        if not isinstance(value, dict):
            raise TypeError("the body must be a JSON object")
        check_fields(value)
        return value


async def read(request: Request, limit: int) -> bytes:
    """Return the body of a request. Raises `TooLargeError` as soon as it has more than `limit` bytes."""
    if int(request.headers.get("content-length", 0)) > limit:
        raise TooLargeError(limit)
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > limit:
            raise TooLargeError(limit)
    return bytes(content)


def loads(text: str, *, strict: bool = True) -> Any:
    """Return the value of a JSON text, without `strict` with line breaks in its texts. Raises `ValueError`."""
    try:
        value = json.loads(text, parse_constant=_refuse, parse_float=_finite, strict=strict)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    _check_depth(value)
    if "\\ud" in text or "\\uD" in text:
        json.dumps(value, ensure_ascii=False).encode()  # raises UnicodeEncodeError for half a pair
    return value


def _check_depth(value: Any) -> None:
    level, depth = [value], 0
    while level := [item for item in level if isinstance(item, dict | list)]:
        depth += 1
        if depth > DEEPEST:
            raise ValueError(_TOO_DEEP)
        level = [child for item in level for child in (item.values() if isinstance(item, dict) else item)]


def check_fields(body: dict[str, Any]) -> None:
    """Raise `TypeError` for other forms of fields that many kinds have: what is stored must not break later readers."""
    for name in _OBJECTS:
        if not isinstance(body.get(name, {}), dict | None):
            raise TypeError(f"'{name}' must be an object")
    tags = body.get("tags")
    if tags is not None and not (isinstance(tags, dict) and all(isinstance(text, str) for text in tags.values())):
        raise TypeError("'tags' must be an object of texts")
    if not isinstance(body.get("location", ""), str | None):
        raise TypeError("'location' must be a text")


def _finite(text: str) -> float:
    number = float(text)
    if number in {float("inf"), float("-inf")}:
        _refuse(text)
    return number


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"the number {text[:20]} is out of range")
