"""What `explain` and `doctor` find: one line each, with what to do about it."""

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """How a finding weighs. A wait passes by itself; an unknown could not be looked at."""

    OK = "ok"
    NOTE = "note"
    UNKNOWN = "unknown"
    WAIT = "wait"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """`check` says what was looked at, `what` what was found, `todo` what to do ("": nothing)."""

    check: str
    verdict: Verdict
    what: str
    todo: str = ""


def ok(check: str, what: str) -> Finding:
    """All is well."""
    return Finding(check, Verdict.OK, what)


def note(check: str, what: str, todo: str = "") -> Finding:
    """Worth knowing."""
    return Finding(check, Verdict.NOTE, what, todo)


def unknown(check: str, what: str, todo: str = "") -> Finding:
    """Could not be looked at."""
    return Finding(check, Verdict.UNKNOWN, what, todo)


def wait(check: str, what: str, todo: str = "") -> Finding:
    """Not yet."""
    return Finding(check, Verdict.WAIT, what, todo)


def problem(check: str, what: str, todo: str = "") -> Finding:
    """Something is wrong."""
    return Finding(check, Verdict.PROBLEM, what, todo)
