"""What podidentity reads from any HTTP answer."""

from datetime import UTC, datetime

import httpx2
import pytest

from podidentity.http import LONGEST_PAUSE_SECONDS, access_token, json_object, retry_after_seconds

NOW = datetime(2026, 1, 31, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("7", 7.0),
        ("0.5", 0.5),
        ("Sat, 31 Jan 2026 12:01:00 GMT", 60.0),
        ("Sat, 31 Jan 2026 11:00:00 GMT", 0.0),
        ("999999999", LONGEST_PAUSE_SECONDS),
        ("nan", None),
        ("-1", None),
        ("soon", None),
        ("\u0663", None),
        ("", None),
    ],
)
def test_a_pause_is_read_or_there_is_none(text: str, seconds: float | None) -> None:
    """Retry-After may be seconds or a date, and is bounded; anything else asks for no pause."""
    headers = [(b"Retry-After", text.encode())]
    assert retry_after_seconds(httpx2.Response(429, headers=headers), NOW) == seconds


@pytest.mark.parametrize(
    ("body", "content"), [(b'{"a": 1}', {"a": 1}), (b"[1]", {}), (b"<html>", {}), (b"[" * 100_000, {}), (b"\xff", {})]
)
def test_json_is_an_object_or_nothing(body: bytes, content: dict[str, int]) -> None:
    """A body that is no JSON object is read as an empty one."""
    assert json_object(body) == content


@pytest.mark.parametrize("token", [None, "", 5, ["t"], {"t": 1}, True])
def test_nothing_but_a_text_is_an_access_token(token: object) -> None:
    """An access token that is not a text is refused, so that no pod gets the word "None" as its token."""
    assert access_token({"access_token": "t"}) == "t"
    with pytest.raises(ValueError, match="no access token"):
        access_token({"access_token": token})
    with pytest.raises(ValueError, match="no access token"):
        access_token({})
