"""Go-style command lines of the daemons: one table for each gives the parser, `--help` and the reference page.

Accepts what Go's `flag` and `pflag` accept: `--x=v`, `--x v`, the same with one dash, `--switch`, `--switch=false`.
NMI and MIC also accept the flags of klog, because manifests pass them; those without effect are reported, so that
the caller can warn once.
"""

import difflib
import re
import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from podidentity.errors import UsageError

FlagValue = bool | int | float | str
Kind = Literal["switch", "number", "text", "duration", "list"]

_TRUE = frozenset({"1", "t", "T", "TRUE", "true", "True"})  # strconv.ParseBool
_FALSE = frozenset({"0", "f", "F", "FALSE", "false", "False"})
_UNITS_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION_PART = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|ms|s|m|h)")
_TEXT_COLUMN = 42
WIDTHS = range(72, 100)
"""Characters in a line of `--help`: below, a column of words is no sentence any more; above, eyes lose the line."""


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag. `default` is written as on the command line; `kind` says how values are read.

    A list is comma-separated, and grows when it is given again: manifests are patched by adding arguments.

    A flag with `effect` false is accepted for the sake of existing manifests and does nothing. `is_new` marks what
    aad-pod-identity lacks; `hidden` ones are left out of `--help` but not of the reference page.
    """

    name: str
    kind: Kind
    default: str
    text: str
    effect: bool = True
    is_new: bool = False
    hidden: bool = False


@dataclass(frozen=True, slots=True)
class Flags:
    """A command line that was read: a value for every flag of the table, and the `names` of those on it."""

    values: Mapping[str, FlagValue]
    names: frozenset[str]
    without_effect: tuple[str, ...]

    def text(self, name: str) -> str:
        """Return a text flag."""
        return str(self.values[name])

    def list(self, name: str) -> list[str]:
        """Return the items of a list flag, in their order."""
        return [item for item in map(str.strip, self.text(name).split(",")) if item]

    def one_of(self, name: str, choices: tuple[str, ...]) -> str:
        """Return a text flag that has few values. Raises `UsageError`."""
        value = self.text(name)
        if value not in choices:
            raise UsageError(f'--{name}: "{value}" is unknown; give {" or ".join(choices)}')
        return value

    def port(self, name: str) -> int:
        """Return a number flag that is a TCP port. Raises `UsageError`."""
        number = self.number(name)
        if not 0 < number < 1 << 16:
            raise UsageError(f"--{name}: {number} is not a port; give one from 1 to 65535")
        return number

    def number(self, name: str) -> int:
        """Return a number flag."""
        return int(self.values[name])

    def switch(self, name: str) -> bool:
        """Return a switch."""
        return bool(self.values[name])

    def seconds(self, name: str, at_least: float = 0.0) -> float:
        """Return a duration in seconds. Raises `UsageError` when it is shorter than `at_least`."""
        seconds = float(self.values[name])
        if seconds < at_least:
            raise UsageError(f"--{name}: {seconds:g} s is too short; write for example 90s or 1h30m")
        return seconds


def _klog(name: str, kind: Kind, default: str) -> Flag:
    text = "A flag of klog, accepted for existing manifests."
    return Flag(name, kind, default, text, effect=False, hidden=True)


COMMON = (
    Flag("help", "switch", "false", "Show this help and exit."),
    Flag("version", "switch", "false", "Show the version and exit."),
    Flag("log-format", "text", "text", "How log lines are written: text or json."),
    Flag("v", "number", "0", "How much is logged; 5 and more adds details that help when something is wrong."),
    Flag("custom-user-agent", "text", "", "Text added to the User-Agent of requests to Azure."),
)
"""What every daemon accepts."""

COMPATIBILITY = (
    Flag("enableProfile", "switch", "false", "There is no profiler.", effect=False),
    _klog("add_dir_header", "switch", "false"),
    _klog("alsologtostderr", "switch", "false"),
    _klog("log_backtrace_at", "text", ":0"),
    _klog("log_dir", "text", ""),
    _klog("log_file", "text", ""),
    _klog("log_file_max_size", "number", "1800"),
    _klog("log_flush_frequency", "duration", "5s"),
    _klog("logtostderr", "switch", "true"),
    _klog("one_output", "switch", "false"),
    _klog("skip_headers", "switch", "false"),
    _klog("skip_log_headers", "switch", "false"),
    _klog("stderrthreshold", "text", "2"),
    _klog("vmodule", "text", ""),
)
"""What aad-pod-identity's manifests may give to either of its daemons, without effect here."""


def parse(program: str, table: Sequence[Flag], arguments: Sequence[str]) -> Flags:
    """Read a command line. Raises `UsageError`, one sentence, for an unknown flag, a bad value or a stray word."""
    flags, error = parse_leniently(program, table, arguments)
    if error is not None:
        raise error
    return flags


def parse_leniently(program: str, table: Sequence[Flag], arguments: Sequence[str]) -> tuple[Flags, UsageError | None]:
    """Read a command line, passing over what is wrong in it; also return the first error, if any."""
    flags = {flag.name: flag for flag in table}
    values = {flag.name: _read(flag, flag.default) for flag in table}
    names: dict[str, None] = {}
    first_error: UsageError | None = None
    words = iter(arguments)
    for word in words:
        try:
            flag, text = _split(program, flags, word)
            value = _read(flag, _value(flag, text, words))
            values[flag.name] = f"{values[flag.name]},{value}" if flag.kind == "list" else value
        except UsageError as error:
            first_error = first_error or error
        else:
            names[flag.name] = None
    idle = tuple(name for name in names if not flags[name].effect)
    return Flags(values, frozenset(names), idle), first_error


def render_help(program: str, summary: str, table: Sequence[Flag], example: str, width: int = WIDTHS.stop) -> str:
    """Return the text of `--help`, at most `width` characters wide. Flags without effect come at the end."""
    visible = [flag for flag in table if not flag.hidden]
    lines = [f"Usage: {program} [flags]", "", *textwrap.wrap(summary, width), "", f"Example: {example}", ""]
    for flag in visible:
        if flag.effect:
            lines += _help_lines(flag, width)
    idle = ", ".join(f"--{flag.name}" for flag in visible if not flag.effect)
    if not idle:
        return "\n".join(lines)
    note = f"Accepted for existing manifests, without effect: {idle}, and the flags of klog (--logtostderr, ...)."
    return "\n".join([*lines, "", *textwrap.wrap(note, width, break_on_hyphens=False)])


def help_width() -> int:
    """Return the width of the reader's terminal, within reason."""
    return min(max(shutil.get_terminal_size((WIDTHS.stop, 0)).columns, WIDTHS.start), WIDTHS.stop)


def _help_lines(flag: Flag, width: int) -> list[str]:
    head = f"  --{flag.name}{_placeholder(flag)}"
    body = textwrap.wrap(flag.text, width - _TEXT_COLUMN)
    first = [head] if len(head) >= _TEXT_COLUMN else [f"{head:<{_TEXT_COLUMN}}{body.pop(0)}"]
    return first + [" " * _TEXT_COLUMN + line for line in body]


def parse_duration(text: str) -> float | None:
    """Read a duration as Go writes it (`1h30m`, `500ms`, `0`) in seconds; None when it is none."""
    if text in {"0", "+0", "-0"}:
        return 0.0
    negative = text.startswith("-")
    digits = text[1:] if text[:1] in {"+", "-"} else text
    parts = _DURATION_PART.findall(digits)
    if not parts or "".join(number + unit for number, unit in parts) != digits:
        return None
    total: float = sum(float(number) * _UNITS_SECONDS[unit] for number, unit in parts)
    return -total if negative else total


def _split(program: str, flags: Mapping[str, Flag], word: str) -> tuple[Flag, str | None]:
    """Cut `--name=value`; the text is None when the value, if any, is the next word."""
    name, equals, text = word.lstrip("-").partition("=")
    dashes = len(word) - len(word.lstrip("-"))
    if not 1 <= dashes <= len("--") or not name:
        raise UsageError(f'unexpected argument "{word}"; flags are written --name=value, see `{program} --help`')
    flag = flags.get("help" if name == "h" else name) or flags.get(name.replace("-", "_"))
    if flag is None and dashes == 1 and name[:1] == "v" and name[1:].isdigit():
        return flags["v"], name[1:]  # pflag's short form
    if flag is None:
        visible = [flag.name for flag in flags.values() if not flag.hidden]
        similar = difflib.get_close_matches(name, visible, 1)
        hint = f"use --{similar[0]}, or see `{program} --help`" if similar else f"see `{program} --help`"
        raise UsageError(f"unknown flag --{name}; {hint}")
    return flag, text if equals else None


def _value(flag: Flag, text: str | None, words: Iterator[str]) -> str:
    if text is not None:
        return text
    if flag.kind == "switch":
        return "true"
    following = next(words, None)
    if following is None:
        raise UsageError(f"--{flag.name} needs a value; write --{flag.name}=VALUE")
    return following


def _read(flag: Flag, text: str) -> FlagValue:
    match flag.kind:
        case "switch":
            if text not in _TRUE | _FALSE:
                raise UsageError(f'--{flag.name}: "{text}" is neither true nor false; write true or false')
            return text in _TRUE
        case "number":
            try:
                return int(text, 0)  # strconv.ParseInt with base 0
            except ValueError:
                raise UsageError(f'--{flag.name}: "{text}" is not a whole number; write for example 5') from None
        case "duration":
            seconds = parse_duration(text)
            if seconds is None:
                raise UsageError(f'--{flag.name}: "{text}" is not a duration; write for example 90s or 1h30m')
            return seconds
        case "text" | "list":
            return text


def _placeholder(flag: Flag) -> str:
    if flag.kind == "switch":
        return "" if flag.default == "false" else f"={flag.default}"
    return f"={flag.default or flag.kind.upper()}"
