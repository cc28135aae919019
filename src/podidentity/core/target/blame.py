"""What a refusal of ARM means: who is to blame, and what a user should do about it.

One bad identity fails a whole PATCH. ARM names it in a sentence, or not; texts: Azure's `LinkedAuthorizationFailed` and
`FailedIdentityOperation`. Decides from a refusal alone.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, auto
from urllib.parse import unquote

from podidentity.core.model.arm import IdentityId, Target, fold_case
from podidentity.core.target.drift import TargetChange

_LINKED = "LinkedAuthorizationFailed"
_FAILED_OPERATION = "FailedIdentityOperation"
_THROTTLED = 429
_WRONG_REQUEST = {400, 422}
_SERVER_ERROR = 500
_OPERATION = 200
"""The status of an answer that tells how an operation failed."""
_PASSING = {
    "authorizationfailed",
    "conflict",
    "internalexecutionerror",
    "internalservererror",
    "operationnotallowed",
    "operationpreempted",
    "retryableerror",
    "serviceunavailable",
    "toomanyrequests",
}
"""Codes that speak of the target or of the moment, never of an identity (lower case)."""
_PRINCIPAL = re.compile(r"client '([^']+)'(?: with object id '([^']+)')?", re.IGNORECASE)
_NAME_CHARACTER = re.compile(r"[\w-]")


@dataclass(frozen=True, slots=True)
class ArmRefusal:
    """ARM's answer to a request, or to the question what became of it.

    `status` is 0 without an answer, and 200 when an operation failed. `retry_after_seconds` is what ARM asked for.
    """

    status: int
    code: str
    message: str
    retry_after_seconds: float | None = None

    @property
    def throttled(self) -> bool:
        """Whether ARM wants to be left alone for a while."""
        return self.status == _THROTTLED or self.retry_after_seconds is not None

    @property
    def of_operation(self) -> bool:
        """Whether ARM accepted the request and failed to do it: then some of it may have been done."""
        return self.status == _OPERATION


class Blame(Enum):
    """Whose fault a refused PATCH is, when no identity is named."""

    TARGET = auto()
    """The machine's, MIC's own rights', or the moment's: the same request may succeed later."""
    UNNAMED = auto()
    """One of the identities, and ARM does not say which."""


def blame(refusal: ArmRefusal, change: TargetChange, present: Iterable[IdentityId]) -> frozenset[IdentityId] | Blame:
    """Return the identities that made ARM refuse a PATCH, in it or on the target already; else whose fault it is.

    ARM checks the latter too: one that was deleted in Azure fails every later PATCH of its scale set.
    """
    if refusal.throttled or refusal.code.lower() in _PASSING or refusal.status >= _SERVER_ERROR:
        return Blame.TARGET
    blamed = _named_in(refusal.message, (*change.assign, *change.unassign, *present))
    if blamed:
        return blamed
    is_known_code = refusal.code in (_LINKED, _FAILED_OPERATION)
    vague = refusal.status in _WRONG_REQUEST or (refusal.of_operation and bool(refusal.code))
    return Blame.UNNAMED if change.assign and (is_known_code or vague) else Blame.TARGET


def _named_in(message: str, candidates: Iterable[IdentityId]) -> frozenset[IdentityId]:
    """Return the candidates that a sentence names. Each is looked for whole, whatever characters ARM allows in it.

    Letters beyond ASCII count as equal without case only when nothing is found otherwise: look-alikes are not blamed.
    """
    ids = tuple(candidates)
    for fold in (fold_case, str.casefold):
        texts = (fold(message), fold(unquote(message)))
        matches = frozenset(identity for identity in ids if any(_contains(text, fold(identity.text)) for text in texts))
        if matches:
            return matches
    return frozenset()


def _contains(message: str, identity_id: str) -> bool:
    """Whether a sentence contains this ID: `reader` is not in `reader-2`."""
    start = message.find(identity_id)
    while start >= 0:
        end = start + len(identity_id)
        if end == len(message) or not _NAME_CHARACTER.match(message[end]):
            return True
        start = message.find(identity_id, end)
    return False


def advise_identity(refusal: ArmRefusal, identity: IdentityId, target: Target) -> str:
    """Return why `identity` is not on `target` and what to do, for users."""
    if refusal.code == _LINKED:
        principal = _principal(refusal.message)
        return (
            f"MIC may not assign {identity} to {target}; grant Managed Identity Operator on {identity} to {principal}"
        )
    if refusal.code == _FAILED_OPERATION:
        return (
            f"Azure cannot assign {identity} to {target}: {_sentence(refusal)}; "
            "create that identity, or correct the resourceID of the AzureIdentity"
        )
    return f"Azure refuses {identity} on {target}: {_sentence(refusal)}; correct the identity or the AzureIdentity"


def advise_target(refusal: ArmRefusal, target: Target) -> str:
    """Return why nothing can be put on `target` now and what to do, for users."""
    if refusal.code.lower() == "authorizationfailed":
        principal = _principal(refusal.message)
        return (
            f"MIC may not change {target}; grant Virtual Machine Contributor on its resource group to {principal}, "
            "or correct azure.json"
        )
    if refusal.code == _FAILED_OPERATION:
        return (
            f"Azure changes nothing on {target}: {_sentence(refusal)}; "
            f"an identity that MIC did not put there is broken, take it off {target}"
        )
    if refusal.throttled:
        return f"Azure throttles {target}: {_sentence(refusal)}; MIC tries again when Azure allows it"
    return f"{target} cannot be changed now: {_sentence(refusal)}; MIC tries again"


def _principal(message: str) -> str:
    """Return MIC's own principal as ARM names it: role assignments take the object ID."""
    match = _PRINCIPAL.search(message)
    if match is None:
        return "MIC's own identity"
    client_id, object_id = match.groups()
    return f"object ID {object_id} (MIC, client ID {client_id})" if object_id else f"client ID {client_id} (MIC)"


def _sentence(refusal: ArmRefusal) -> str:
    words = " ".join(refusal.message.split()).rstrip(". ") or f"status {refusal.status}"
    return words if not refusal.code or refusal.code in words else f"{refusal.code}: {words}"
