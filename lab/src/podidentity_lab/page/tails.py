"""Which lines of a log are new when it is read again: at the page's start it is read twice, later when a call ends."""

from collections import Counter, deque


class Tail:
    """The last lines that were taken of one log, `limit` at most. Only their hashes are here."""

    def __init__(self, limit: int) -> None:
        self._lines: deque[int] = deque(maxlen=limit)
        self._overlap: Counter[int] = Counter()

    def rewind(self) -> None:
        """Begin again at a line that may have been taken already."""
        self._overlap = Counter(self._lines)

    def take(self, line: str) -> bool:
        """Take the next line; return whether it is new. Behind the first new line every line is."""
        line_hash = hash(line)
        if self._overlap.get(line_hash, 0):
            self._overlap[line_hash] -= 1
            return False
        self._overlap.clear()
        self._lines.append(line_hash)
        return True
