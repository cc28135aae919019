"""Times as texts of RFC 3339."""

import pytest

from podidentity.timing import parse_rfc3339, render_rfc3339


@pytest.mark.parametrize("micro", [False, True])
def test_a_time_is_read_as_it_was_written(*, micro: bool) -> None:
    """Both of Kubernetes' forms of a time are read as the same moment."""
    moment = 1_770_000_000.25 if micro else 1_770_000_000.0
    assert parse_rfc3339(render_rfc3339(moment, micro=micro)) == moment


@pytest.mark.parametrize("text", ["", "yesterday", "2026-01-31T12:00:00"])
def test_what_is_no_time_is_none(text: str) -> None:
    """A text that is no time, or has no time zone, is read as None."""
    assert parse_rfc3339(text) is None
