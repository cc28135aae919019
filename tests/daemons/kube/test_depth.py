"""Texts made shallow: what is deep goes, all else stays as it was, whatever stands in it."""

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podidentity.kube import depth
from podidentity.kube.depth import LEVELS, PLACEHOLDER, cut_depth, was_cut

TEXTS = st.text(alphabet='a"\\{}[]:,\n\u00e9')
VALUES = st.recursive(st.none() | st.integers() | TEXTS, lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner))


def nested(levels: int, value: Any) -> Any:
    """Put a value below so many lists."""
    for _ in range(levels):
        value = [value]
    return value


def depth_of(value: Any) -> int:
    """Count the levels of a value."""
    inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(depth_of, inner), default=0)


@given(VALUES)
def test_what_is_shallow_stays_byte_for_byte(value: Any) -> None:
    """A text that is not too deep is returned unchanged; brackets and quotes within strings do not count as depth."""
    text = json.dumps(value).encode()
    assert cut_depth(text) == text
    assert not was_cut(text)


@given(VALUES, VALUES, st.integers(0, 6))
def test_what_is_deeper_is_replaced_and_its_neighbours_stay(deep: Any, neighbour: Any, limit: int) -> None:
    """The result is JSON with the values of the original down to the limit, and none below."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(depth, "LEVELS", limit)
        result = cut_depth(json.dumps([neighbour, deep, neighbour]).encode())
    assert json.loads(result) == cut([neighbour, deep, neighbour], limit)
    assert depth_of(json.loads(result)) <= limit


def cut(value: Any, levels: int) -> Any:
    """Do what is tested, with values in place of texts."""
    if not isinstance(value, list | dict):
        return value
    if not levels:
        return json.loads(PLACEHOLDER)
    if isinstance(value, dict):
        return {name: cut(item, levels - 1) for name, item in value.items()}
    return [cut(item, levels - 1) for item in value]


def test_a_cut_text_is_known_as_one() -> None:
    """A text that was cut is recognised as such, because nobody may write a cut object back."""
    text = b"[" * (LEVELS + 1) + b"]" * (LEVELS + 1)
    assert was_cut(cut_depth(text))
    assert not was_cut(text)


@pytest.mark.parametrize("text", [b"]" * 9000, b"[" * 9000, b'"' + b"[" * 9000, b"{]" * 9000])
def test_what_is_no_json_does_not_become_any(text: bytes) -> None:
    """Whatever comes back cannot be decoded, and takes no long time to be so."""
    with pytest.raises(ValueError, match=re.compile(".")):
        json.loads(cut_depth(text))
