"""Log lines as text or JSON, on standard error, with client IDs shortened.

Messages go through the standard library's logging; what belongs to a line beside its sentence is given as
`extra=fields(pod=..., status=...)`. Frequent lines (one per token) go through `Lines`, which costs less than a
microsecond. Both end in a `sink`, which waits for nobody. Set up once by each daemon's command.
"""

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Any

import msgspec

from podidentity.core.model import redact
from podidentity.serving.sink import Sink, standard_error

_log = logging.getLogger(__name__)

_REDACTED = frozenset({"client_id"})
_DETAILS_FROM = 5  # klog's convention: -v=5 and more is for finding faults
_END_SECONDS = 1.0
_LONGEST = 16384  # characters of a sentence; container runtimes cut lines there too
_encode = msgspec.json.Encoder().encode


def fields(**values: object) -> dict[str, Any]:
    """Make the `extra` argument of a logging call: what the line carries beside its sentence."""
    return {"fields": values}


def set_up(log_format: str, verbosity: int) -> None:
    """Send all log lines to standard error, as `log_format` ("text" or "json") says. Called once, by the command."""
    sink = standard_error()
    sink.report_dropped = _report_dropped
    handler = SinkHandler(sink)
    handler.setFormatter(JsonLines() if log_format == "json" else TextLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    logging.getLogger("podidentity").setLevel(logging.DEBUG if verbosity >= _DETAILS_FROM else logging.INFO)
    for chatty in ("httpx2", "httpcore2", "asyncio", "lightkube"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    logging.getLogger("msal").setLevel(logging.CRITICAL)  # it writes whole answers; its failures are errors of ours


def _report_dropped(count: int) -> None:
    _log.warning("%d log lines were dropped: nobody read them in time; look at what collects this log", count)


class SinkHandler(logging.Handler):
    """Sends formatted lines to a sink."""

    def __init__(self, sink: Sink) -> None:
        super().__init__()
        self._sink = sink

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        try:
            self._sink.write(self.format(record).encode(errors="backslashreplace") + b"\n")
        except Exception:  # noqa: BLE001  # as every handler: a line that cannot be written ends nothing
            self.handleError(record)

    def close(self) -> None:
        """Write what waits, within a second: `logging` calls it when the process ends."""
        self._sink.flush(_END_SECONDS)
        super().close()


class TextLines(logging.Formatter):
    """`2026-11-24T01:54:32.123Z INFO nmi.redirect: sentence key=value`."""

    def format(self, record: logging.LogRecord) -> str:
        """Write one line; a traceback, which only a bug has, follows on more."""
        fields = "".join(f" {name}={_plain(value)}" for name, value in _fields(record).items())
        name = record.name.removeprefix("podidentity.")
        line = (
            f"{_moment(record.created)} {record.levelname} {name}: "
            f"{redact.printable(record.getMessage(), _LONGEST)}{fields}"
        )
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonLines(logging.Formatter):
    """One JSON object a line: `ts`, `level`, `logger`, `msg` and the fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Write one line; a traceback, which only a bug has, is in `traceback`."""
        entry: dict[str, object] = {
            "ts": _moment(record.created),
            "level": record.levelname.lower(),
            "logger": record.name.removeprefix("podidentity."),
            "msg": record.getMessage(),
            **{name: _simple(value) for name, value in _fields(record).items()},
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return _encode(entry).decode()


class Lines:
    """Writes frequent lines of one kind, collected while the event loop turns once, then written in one go.

    Each is a part that the caller may keep, made by `prepare` from strings and numbers already fit for a log, and the
    milliseconds it is about. The sink drops and counts what cannot be written.
    """

    def __init__(self, log_format: str, kind: str, sink: Sink | None = None) -> None:
        self._json = log_format == "json"
        self._kind = kind
        self._sink = sink or standard_error()
        self._start, self._end = (b'{"ts":"', b"}\n") if self._json else (b"", b"\n")
        self._waiting: list[bytes | float] = []  # in turn, a prepared part and its milliseconds

    def prepare(self, line: Mapping[str, str | int]) -> bytes:
        """Make the part of a line that stays the same whenever it is written, for `write`."""
        if self._json:
            head = _encode({"level": "info", "logger": self._kind, **line})
            return b'Z",' + head[1:-1] + b',"ms":'
        fields = " ".join([f"{name}={_plain(value)}" for name, value in line.items()])
        return f"Z INFO {self._kind}: {fields} ms=".encode()

    def write(self, prepared: bytes, milliseconds: float) -> None:
        """Take one line; it is written before the event loop waits again."""
        waiting = self._waiting
        if not waiting:
            asyncio.get_running_loop().call_soon(self.flush)
        waiting += (prepared, milliseconds)

    def flush(self) -> None:
        """Write what is waiting. One moment and one formatting for all: each costs more than a line's own part."""
        waiting, self._waiting = self._waiting, []
        count = len(waiting) // 2
        line = self._start + _moment_bytes() + b"%b%.3f" + self._end
        self._sink.write(line * count % tuple(waiting), count)


class _Moment:
    """The text of the second and the millisecond we are in: formatting them for each line would cost more than it."""

    second = -1
    second_text = b""
    millisecond = -1
    text = b""


def _moment(seconds: float) -> str:
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{int(seconds % 1 * 1000):03d}Z"


def _moment_bytes() -> bytes:
    millisecond = int(time.time() * 1000)
    if millisecond != _Moment.millisecond:
        second = millisecond // 1000
        if second != _Moment.second:
            _Moment.second_text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second)).encode()
            _Moment.second = second
        _Moment.text = b"%b.%03d" % (_Moment.second_text, millisecond % 1000)
        _Moment.millisecond = millisecond
    return _Moment.text


def _fields(record: logging.LogRecord) -> dict[str, object]:
    fields: Mapping[str, object] = getattr(record, "fields", {})
    return {name: redact.client_id(str(value)) if name in _REDACTED else value for name, value in fields.items()}


def _simple(value: object) -> object:
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)


def _plain(value: object) -> str:
    text = str(value)
    return text if text and text.isprintable() and not set(text) & set(' "=') else _encode(text).decode()
