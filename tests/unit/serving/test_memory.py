"""Freed memory goes back to the kernel, also where small objects are left between freed ones."""

import gc
import os
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

from podidentity.serving import memory

KEPT_EVERY = 100
PIECES = 40_000
PIECE_BYTES = 2000  # from the C library's heap: Python's own takes up to 512


def test_holes_go_back() -> None:
    """Of 80 MB in small pieces one in a hundred is kept: more than half of the memory goes back to the kernel."""
    pieces = [bytes(PIECE_BYTES) for _ in range(PIECES)]
    full = _resident_bytes()
    kept = pieces[::KEPT_EVERY]
    pieces.clear()
    memory.give_back()
    assert full - _resident_bytes() > PIECES * PIECE_BYTES / 2
    assert len(kept) == PIECES // KEPT_EVERY


def test_another_c_library_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `malloc_trim` in the C library, nothing happens."""
    monkeypatch.setattr("ctypes.CDLL", lambda _: object())
    memory.give_back()


class Node:
    """An object that can be part of a cycle."""

    other: "Node"


def cycle() -> "weakref.ref[Node]":
    """Make two objects that refer to each other and that nothing else refers to."""
    left, right = Node(), Node()
    left.other, right.other = right, left
    return weakref.ref(left)


@pytest.fixture
def _thawed() -> Iterator[None]:
    """Unfreeze all objects at the end."""
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("_thawed")
def test_a_plan_is_made_without_collections_and_what_it_made_is_exempt() -> None:
    """Objects made without collections are collected only by `collect_frozen`.

    The collector works again even after an error.
    """
    before = cycle()
    with pytest.raises(ZeroDivisionError), memory.without_collections():  # noqa: PT012  # the state before the error
        assert before() is None
        assert not gc.isenabled()
        during = cycle()
        pytest.fail(f"{1 / 0}")
    assert gc.isenabled()
    gc.collect()
    assert during() is not None
    memory.collect_frozen()
    assert during() is None


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
