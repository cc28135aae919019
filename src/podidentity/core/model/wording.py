"""Parts of sentences for people: lists that stay short."""

from collections.abc import Iterable


def some_of(texts: Iterable[str], limit: int) -> str:
    """Return the first `limit` texts, comma-separated, and how many there are besides: `a, b and 3 more`."""
    items = tuple(texts)
    remainder = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + remainder
