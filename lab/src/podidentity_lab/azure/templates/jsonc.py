"""JSON as ARM takes it in templates: with comments, trailing commas, line breaks in texts, and names without quotes.

The last is what azure-cli 2.91 sends: it puts a template's file as it stands behind a bare `template:`.
"""

import re
from typing import Any

from podidentity_lab.azure import bodies

# Each match takes all that begins at its place, also what has no end: otherwise the search would start again behind
# every quote and letter, and take hours for a megabyte of them.
_TEXT = r'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)'
_COMMENT = re.compile(rf"{_TEXT}|//[^\n]*|/\*.*?(?:\*/|\Z)", re.DOTALL)
_BARE = re.compile(rf"{_TEXT}|(?P<name>[A-Za-z_$][\w$]*+)(?P<colon>(?=\s*+:))?|,(?=\s*+[}}\]])", re.DOTALL)


def loads(text: str) -> Any:
    """Return the value of a text. Raises `ValueError`."""
    return bodies.loads(_BARE.sub(_name_or_nothing, _COMMENT.sub(_text_or_space, text)), strict=False)


def _text_or_space(match: re.Match[str]) -> str:
    return match[0] if match[0].startswith('"') else " "


def _name_or_nothing(match: re.Match[str]) -> str:
    if match[0] == ",":
        return ""
    return match[0] if match["colon"] is None else f'"{match[0]}"'
