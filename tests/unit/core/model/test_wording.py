"""Lists in sentences stay short."""

import pytest

from podidentity.core.model.wording import some_of


@pytest.mark.parametrize(
    ("texts", "sentence"),
    [
        ((), ""),
        (("a",), "a"),
        (("a", "b"), "a, b"),
        (("a", "b", "c"), "a, b and 1 more"),
        ("abcdef", "a, b and 4 more"),
    ],
)
def test_what_is_left_out_is_counted(texts: tuple[str, ...], sentence: str) -> None:
    """A list has its first items and the number of the others."""
    assert some_of(iter(texts), 2) == sentence
