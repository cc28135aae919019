"""What may stand in a log: client IDs shortened as upstream does; tokens and secrets never; no line but our own."""

import re

_LONG = re.compile(r"(\S{4}).*(\S{4})", re.DOTALL)


def client_id(text: str) -> str:
    """Return a client ID's first and last four characters (upstream: `pkg/utils`); shorter texts stay."""
    return _LONG.sub(r"\1##### REDACTED #####\2", text, count=1)


def printable(text: str, limit: int = 256) -> str:
    """Return a foreign text fit for a sentence: cut to `limit` characters, and escaped where it would not print.

    A line end would begin a log line of its own, an escape sequence would speak to the reader's terminal.
    """
    shortened = text if len(text) <= limit else f"{text[:limit]}..."
    if shortened.isprintable():
        return shortened
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in shortened
    )
