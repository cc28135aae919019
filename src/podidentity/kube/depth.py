"""Makes a deeply nested JSON text shallow enough to be read: no field that a daemon reads is nested as deeply.

Decoders recurse, and every Python has a limit that some object below the API server's own one can reach: 1,000 levels
by default, 10,000 calls of C code in Python 3.12 and 3.13 however high a program sets its own. Whoever may create a pod
writes such an object, and it must not cost the list that it is in.
"""

import asyncio
import re
from typing import TypeVar

import msgspec

T = TypeVar("T")

LEVELS = 500
"""How many levels stay: our own fields are within twenty, and any decoder of any Python reads so many."""
PLACEHOLDER = b'"\\u0000nested too deeply"'
"""Stands for what was deeper. Whoever writes it into an object makes just that object one that was cut."""
_BRACKETS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]', re.DOTALL)  # and texts, which may contain some


def cut_depth(text: bytes) -> bytes:
    """Return a JSON text with `PLACEHOLDER` for each value below `LEVELS` levels. 10 MB of brackets take a second."""
    parts: list[bytes] = []
    depth = start = 0
    for match in _BRACKETS.finditer(text):
        bracket = text[match.start()]
        if bracket in b"{[":
            depth += 1
            if depth == LEVELS + 1:
                parts += (text[start : match.start()], PLACEHOLDER)
        elif bracket in b"}]":
            depth -= 1
            if depth == LEVELS:
                start = match.end()
    return b"".join((*parts, text[start:] if depth <= LEVELS else b""))


def decode(decoder: msgspec.json.Decoder[T], text: bytes | msgspec.Raw) -> T:
    """Decode a text of any depth; what is too deep for this process is cut. Raises what msgspec raises."""
    try:
        return decoder.decode(text)
    except RecursionError:
        return decoder.decode(cut_depth(bytes(text)))


async def decode_beside(decoder: msgspec.json.Decoder[T], text: bytes) -> T:
    """Do the same, but cut in a thread: long texts are, and others wait for the event loop."""
    try:
        return decoder.decode(text)
    except RecursionError:
        return decoder.decode(await asyncio.to_thread(cut_depth, text))


def was_cut(text: bytes | msgspec.Raw) -> bool:
    """Whether a text lacks something since it was cut, so that it must not be written back."""
    return PLACEHOLDER in bytes(text)
