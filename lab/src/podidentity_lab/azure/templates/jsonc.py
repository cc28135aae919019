"""JSON as ARM takes it in templates: with comments, trailing commas, line breaks in texts, and names without quotes.

The last is what azure-cli 2.91 sends: it puts a template's file as it stands behind a bare `template:`.
"""

import json
import re
from typing import Any

_TEXT = r'"(?:[^"\\]|\\.)*"'
_COMMENT = re.compile(rf"{_TEXT}|//[^\n]*|/\*.*?\*/", re.DOTALL)
_BARE = re.compile(rf"{_TEXT}|[A-Za-z_$][\w$]*(?=\s*:)|,(?=\s*[}}\]])", re.DOTALL)


def loads(text: str) -> Any:
    """Return the value of a text. Raises `ValueError`."""
    return json.loads(_BARE.sub(_name_or_nothing, _COMMENT.sub(_text_or_space, text)), strict=False)


def _text_or_space(match: re.Match[str]) -> str:
    return match[0] if match[0].startswith('"') else " "


def _name_or_nothing(match: re.Match[str]) -> str:
    if match[0].startswith('"'):
        return match[0]
    return "" if match[0] == "," else f'"{match[0]}"'
