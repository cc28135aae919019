"""Turns refusals of the API server, by status and Status body, into the errors of `podidentity.errors`."""

import math

import httpx2
import msgspec

from podidentity.errors import (
    ConflictError,
    ForbiddenError,
    GoneError,
    InvalidError,
    KubernetesError,
    NotFoundError,
    TerminatingError,
    ThrottledError,
    UnreachableError,
)
from podidentity.http import retry_after_seconds

LONGEST_WAIT_SECONDS = 30.0
"""The longest Retry-After that is obeyed: a confused server or proxy must not silence a daemon for hours."""


class _Cause(msgspec.Struct):
    reason: str = ""


class _Details(msgspec.Struct, rename="camel"):
    retry_after_seconds: float | None = None
    causes: tuple[_Cause, ...] = ()


class Status(msgspec.Struct):
    """The object that the API server sends with a refusal; every field is optional."""

    message: str = ""
    reason: str = ""
    code: int = 0
    details: _Details | None = None


_STATUS = msgspec.json.Decoder(Status)

_TERMINATING = "NamespaceTerminating"  # k8s.io/api/core/v1, NamespaceTerminatingCause: a 403 that is not about roles
_UNSERVED = "could not find the requested resource"  # the message of a server that does not serve a path

_ERRORS: dict[int, type[KubernetesError]] = {
    400: InvalidError,
    401: ForbiddenError,
    403: ForbiddenError,
    404: NotFoundError,
    409: ConflictError,
    410: GoneError,
    422: InvalidError,
    429: ThrottledError,
}

_ADVICE = {
    400: "correct the object",
    401: "renew the token or certificate",
    403: "allow it in the role",
    409: "read it again, then write",
    410: "list again",
    422: "correct the object",
    429: "ask again later",
}


def error_of(
    operation: str, status: int, status_object: Status, retry_after_seconds: float | None = None
) -> KubernetesError:
    """Return the error for `operation` (such as "list pods"): the server's message and an advice."""
    message = status_object.message.strip().rstrip(".") or f"status {status}"
    advice = _ADVICE.get(status) or ("create it" if status == httpx2.codes.NOT_FOUND else "see the API server's log")
    if status == httpx2.codes.NOT_FOUND and (not status_object.message or _UNSERVED in status_object.message):
        message, advice = (
            "the API server does not know this kind",
            "install its CustomResourceDefinition (deploy/infra)",
        )
    wait = retry_after_seconds
    if wait is None and status_object.details is not None:
        wait = _bounded(status_object.details.retry_after_seconds)
    kind = _ERRORS.get(status, UnreachableError)
    if status_object.details is not None and any(
        cause.reason == _TERMINATING for cause in status_object.details.causes
    ):
        kind, advice = TerminatingError, "nothing new can be created there"
    return kind(f"{operation}: {message}; {advice}", status=status, retry_after_seconds=wait)


def read_status(body: bytes | msgspec.Raw) -> Status:
    """Return the Status in a body; an empty one for anything else, such as a proxy's page."""
    try:
        return _STATUS.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return Status()


def retry_after_of(response: httpx2.Response) -> float | None:
    """Return the seconds that a Retry-After header asks to wait, within the limit; None without one."""
    return _bounded(retry_after_seconds(response))


def _bounded(seconds: float | None) -> float | None:
    """Return `seconds` within the limits; None for NaN, which is neither above nor below a limit."""
    return None if seconds is None or math.isnan(seconds) else min(max(seconds, 0.0), LONGEST_WAIT_SECONDS)


def no_answer(operation: str, server: str, error: Exception) -> UnreachableError:
    """Return the error for a request without an answer."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return UnreachableError(
        f"{operation}: no answer from the API server at {server} ({reason}); check that it is reachable"
    )
