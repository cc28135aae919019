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
    """`check` is the subject of the check, `message` its result, `todo` what to do about it ("": nothing)."""

    check: str
    verdict: Verdict
    message: str
    todo: str = ""


def ok(check: str, message: str) -> Finding:
    """All is well."""
    return Finding(check, Verdict.OK, message)


def note(check: str, message: str, todo: str = "") -> Finding:
    """Worth knowing."""
    return Finding(check, Verdict.NOTE, message, todo)


def unknown(check: str, message: str, todo: str = "") -> Finding:
    """Could not be looked at."""
    return Finding(check, Verdict.UNKNOWN, message, todo)


def wait(check: str, message: str, todo: str = "") -> Finding:
    """Not yet."""
    return Finding(check, Verdict.WAIT, message, todo)


def problem(check: str, message: str, todo: str = "") -> Finding:
    """Something is wrong."""
    return Finding(check, Verdict.PROBLEM, message, todo)
