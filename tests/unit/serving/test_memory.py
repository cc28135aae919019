"""Memory that was freed is the kernel's again, also where something small still lies between the holes."""

import os
from pathlib import Path

import pytest

from podidentity.serving import memory

KEPT_EVERY = 100
PIECES = 40_000
PIECE_BYTES = 2000  # from the C library's heap: Python's own takes up to 512


def test_holes_go_back() -> None:
    """Of 80 MB in small pieces one in a hundred is kept: about as much goes back to the kernel."""
    pieces = [bytes(PIECE_BYTES) for _ in range(PIECES)]
    full = _resident_bytes()
    kept = pieces[::KEPT_EVERY]
    pieces.clear()
    memory.give_back()
    assert full - _resident_bytes() > PIECES * PIECE_BYTES / 2
    assert len(kept) == PIECES // KEPT_EVERY


def test_another_c_library_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `malloc_trim`, nothing happens."""
    monkeypatch.setattr("ctypes.CDLL", lambda _: object())
    memory.give_back()


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
