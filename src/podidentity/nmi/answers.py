"""Answers and permissions: values that pass from `access` and `token` through `app` to the listener.

Nothing here decides. Both values remember what was made of them, because most requests are asked again and again.
"""

from dataclasses import dataclass, field

from podidentity.core.model.identities import AzureIdentity, AzureIdentityBinding
from podidentity.core.model.snapshot import Pod
from podidentity.core.tokens.imds import Refusal, render_error
from podidentity.core.tokens.sources import Source

_SOON_SECONDS = 1


@dataclass(slots=True)
class Answer:
    """A whole response, and what the audit line says of it.

    For when the very same one is given again: `note` is what the observer has made of it, `dated` a Date line and the
    response with it.
    """

    status: int
    body: bytes
    reason: str = ""
    pod: Pod | None = None
    identity: AzureIdentity | None = None
    binding: AzureIdentityBinding | None = None
    source: Source | None = None
    cached: bool = False
    note: object = field(default=None, init=False, repr=False, compare=False)
    dated: tuple[bytes, bytes] = field(default=(b"", b""), init=False, repr=False, compare=False)


@dataclass(slots=True, eq=False)
class Permission:
    """`pod` may have a token of `source`. `identity` and `binding` are None for an excepted pod.

    `last_answer` is the one that was made from the cache last: it serves again while its bytes are the same.
    """

    pod: Pod
    source: Source
    identity: AzureIdentity | None
    binding: AzureIdentityBinding | None
    last_answer: Answer | None = field(default=None, init=False, repr=False)


def refuse(refusal: Refusal, pod: Pod | None = None, *, retry_after_seconds: int | None = None) -> Answer:
    """Return the answer that a refusal makes; 503 asks the client to come back."""
    if refusal.status == 503 and retry_after_seconds is None:  # noqa: PLR2004  # Service Unavailable
        retry_after_seconds = _SOON_SECONDS
    body = render_error(refusal.status, refusal.message, retry_after_seconds=retry_after_seconds)
    return Answer(refusal.status, body, refusal.message, pod)
