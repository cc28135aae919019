"""What a refusal of the API server means: its status and Status body become one of the errors of `podidentity.errors`.

Called by `api` for every answer that is none of 2xx, and by `reflector` for the errors inside a watch.
"""

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
    ThrottledError,
    UnreachableError,
)

LONGEST_WAIT_SECONDS = 30.0
"""What a Retry-After may ask at most: a confused server or proxy must not silence a daemon for hours."""


class _Details(msgspec.Struct, rename="camel"):
    retry_after_seconds: float | None = None


class Status(msgspec.Struct):
    """The object that the API server refuses with; every field optional."""

    message: str = ""
    reason: str = ""
    code: int = 0
    details: _Details | None = None


_STATUS = msgspec.json.Decoder(Status)

_UNSERVED = "could not find the requested resource"  # how a server says that it does not serve a path

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
    what: str, status: int, status_object: Status, retry_after_seconds: float | None = None
) -> KubernetesError:
    """Make the error for `what` (such as "list pods"): the server's words, and what to do about it."""
    said = status_object.message.strip().rstrip(".") or f"status {status}"
    advice = _ADVICE.get(status) or ("create it" if status == httpx2.codes.NOT_FOUND else "see the API server's log")
    if status == httpx2.codes.NOT_FOUND and (not status_object.message or _UNSERVED in status_object.message):
        said, advice = "the API server does not know this kind", "install its CustomResourceDefinition (deploy/infra)"
    wait = retry_after_seconds
    if wait is None and status_object.details is not None:
        wait = _bounded(status_object.details.retry_after_seconds)
    kind = _ERRORS.get(status, UnreachableError)
    return kind(f"{what}: {said}; {advice}", status=status, retry_after_seconds=wait)


def read_status(body: bytes | msgspec.Raw) -> Status:
    """Read a Status; what is none (a proxy's page) gives an empty one."""
    try:
        return _STATUS.decode(body)
    except msgspec.MsgspecError:
        return Status()


def retry_after_of(response: httpx2.Response) -> float | None:
    """Return the seconds that a Retry-After header asks to wait; None without one, or with a date."""
    try:
        return _bounded(float(response.headers.get("Retry-After", "")))
    except ValueError:
        return None


def _bounded(seconds: float | None) -> float | None:
    """Keep what can be waited; "nan" is neither over nor under any limit."""
    return None if seconds is None or math.isnan(seconds) else min(max(seconds, 0.0), LONGEST_WAIT_SECONDS)


def no_answer(what: str, server: str, error: Exception) -> UnreachableError:
    """Make the error for a request without an answer."""
    why = " ".join(str(error).split()) or type(error).__name__
    return UnreachableError(f"{what}: no answer from the API server at {server} ({why}); check that it is reachable")
