"""What may stand in a log: client IDs shortened as upstream does; tokens and secrets never; no line but our own."""

import re

_LONG = re.compile(r"(\S{4}).*(\S{4})", re.DOTALL)


def client_id(text: str) -> str:
    """Keep the first and the last four characters (upstream: `pkg/utils`, RedactClientID); shorter texts stay."""
    return _LONG.sub(r"\1##### REDACTED #####\2", text, count=1)


def shown(text: str, limit: int = 256) -> str:
    """Make a text that somebody else wrote fit for a sentence: cut, and what would not print escaped.

    A line end would begin a log line of its own, an escape sequence would speak to the reader's terminal.
    """
    cut = text if len(text) <= limit else f"{text[:limit]}..."
    if cut.isprintable():
        return cut
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in cut)
