"""Answers, and what a pod is given: values that pass from `access` and `token` through `app` to the listener.

Nothing here decides. Both values remember what was made of them, because most requests are asked again and again.
"""

from dataclasses import dataclass, field

from podidentity.core.cluster import Pod
from podidentity.core.identities import AzureIdentity, AzureIdentityBinding
from podidentity.core.imds import Refusal, render_error
from podidentity.core.sources import Source

_SOON_SECONDS = 1


@dataclass(slots=True)
class Answer:
    """A whole response, and what the audit line says of it.

    `note` is the observer's: what it has made of this answer, for when the very same one is given again.
    """

    status: int
    body: bytes
    why: str = ""
    pod: Pod | None = None
    identity: AzureIdentity | None = None
    binding: AzureIdentityBinding | None = None
    source: Source | None = None
    cached: bool = False
    note: object = field(default=None, init=False, repr=False, compare=False)


@dataclass(slots=True, eq=False)
class Allowed:
    """`pod` may have a token of `source`. `identity` and `binding` are None for an excepted pod.

    `given` is the answer it was last given from the cache: it is given again while its bytes are the same.
    """

    pod: Pod
    source: Source
    identity: AzureIdentity | None
    binding: AzureIdentityBinding | None
    given: Answer | None = field(default=None, init=False, repr=False)


def refuse(refusal: Refusal, pod: Pod | None = None, *, retry_after_seconds: int | None = None) -> Answer:
    """Make the answer of a refusal; 503 asks the client to come back."""
    if refusal.status == 503 and retry_after_seconds is None:  # noqa: PLR2004  # Service Unavailable
        retry_after_seconds = _SOON_SECONDS
    body = render_error(refusal.status, refusal.why, retry_after_seconds=retry_after_seconds)
    return Answer(refusal.status, body, refusal.why, pod)
