"""Log lines as text and JSON, with shortened client IDs, and frequent lines written together."""

import asyncio
import json
import logging
import os
import re
from pathlib import Path

import pytest

from podidentity.serving.logs import JsonLines, Lines, TextLines, fields
from podidentity.serving.sink import Sink

CLIENT_ID = "aaaabbbb-cccc-dddd-eeee-ffff00001111"


def record(**values: object) -> logging.LogRecord:
    """Return a log record."""
    made = logging.LogRecord("podidentity.nmi.x", logging.INFO, "f", 1, "pod %s has it", ("a/b",), None)
    made.__dict__.update(fields(**values))
    return made


def test_text() -> None:
    """A line has time, level, logger, message and fields; values with spaces or other special characters are quoted."""
    line = TextLines().format(record(status=200, why="two words", client_id=CLIENT_ID))
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO nmi\.x: pod a/b has it "
        r'status=200 why="two words" client_id="aaaa##### REDACTED #####1111"',
        line,
    )


def test_a_sentence_is_one_line() -> None:
    """A tenant's text in a message cannot begin a line, control a terminal or fill the disk."""
    made = record()
    made.args = ("a\n2026-11-24T01:00:00.000Z INFO mic: all is well\x1b[2J\u2028" + "x" * 1_000_000,)
    line = TextLines().format(made)
    assert line.isprintable()
    assert len(line) < 20_000
    assert r"pod a\n2026" in line


def test_json() -> None:
    """A line is one JSON object with the same content."""
    told = json.loads(JsonLines().format(record(status=200, client_id=CLIENT_ID)))
    assert told["msg"] == "pod a/b has it"
    assert (told["level"], told["logger"], told["status"]) == ("info", "nmi.x", 200)
    assert CLIENT_ID not in json.dumps(told)


@pytest.mark.parametrize("log_format", ["text", "json"])
async def test_frequent_lines_come_out_whole(tmp_path: Path, log_format: str) -> None:
    """Lines of one turn of the event loop are written at its end, in order."""
    path = tmp_path / "log"
    with path.open("w") as stream:
        lines = Lines(log_format, "audit", Sink(stream.fileno()))
        prepared = lines.prepare({"pod": "web", "why": "a=b", "n": 1})
        for number in range(3):
            lines.write(prepared, number / 8)
        assert path.read_text() == ""
        await asyncio.sleep(0)
    written = path.read_text().splitlines()
    assert len(written) == 3
    if log_format == "json":
        assert [json.loads(line)["ms"] for line in written] == [0.0, 0.125, 0.25]
        assert json.loads(written[0]).items() >= {"logger": "audit", "pod": "web", "why": "a=b", "n": 1}.items()
    else:
        assert written[1].endswith(' INFO audit: pod=web why="a=b" n=1 ms=0.125')


async def test_lines_that_cannot_be_written_are_counted() -> None:
    """A line for a closed standard error is dropped and counted; the daemon continues."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as stream:
        sink = Sink(stream.fileno())
        lines = Lines("text", "audit", sink)
        lines.write(lines.prepare({}), 1.0)
        lines.flush()
        assert sink.dropped_count == 1
