"""Which identity made ARM refuse a PATCH, and what the user is told."""

from collections.abc import Callable

import pytest

import make
from podidentity.core.model.arm import IdentityId, parse_identity_id
from podidentity.core.target.blame import ArmRefusal, Blame, advise_identity, advise_target, blame
from podidentity.core.target.drift import TargetChange

A, B = make.identity_id("reader"), make.identity_id("reader-2")
LINKED = (
    "The client 'c-1' with object id 'o-1' has permission to perform action "
    "'Microsoft.Compute/virtualMachineScaleSets/write' on scope '/subscriptions/s/x'; however, it does not have "
    "permission to perform action(s) 'Microsoft.ManagedIdentity/userAssignedIdentities/assign/action' on the linked "
    "scope(s) '{}' (respectively) or the linked scope(s) are invalid."
)


def odd(group: str, name: str = "n") -> IdentityId:
    """Return an identity of a resource group with an unusual name."""
    result = parse_identity_id(make.resource_id(name, group))
    assert result is not None
    return result


@pytest.mark.parametrize("group", ["apps.prod", "apps(1)", "apps-_x", "MC_a.b(c)_eastus", "größe"])
@pytest.mark.parametrize("written", [str, str.upper, lambda text: text.replace("(", "%28").replace(")", "%29")])
def test_an_identity_is_found_by_whatever_characters_arm_allows(group: str, written: Callable[[str], str]) -> None:
    """Identities are found in ARM's message in any spelling.

    Upstream's pattern missed resource groups with dots and brackets.
    """
    identity = odd(group)
    refusal = ArmRefusal(403, "LinkedAuthorizationFailed", LINKED.format(written(identity.text)))
    assert blame(refusal, TargetChange((A, identity)), ()) == frozenset({identity})


def test_a_look_alike_is_not_blamed() -> None:
    """When an identity with a Kelvin sign in its name is refused, the one with a `k` there is not set aside."""
    lookalike, meant = odd("apps", "\u212aeys"), odd("apps", "keys")
    refusal = ArmRefusal(400, "FailedIdentityOperation", LINKED.format(lookalike.text))
    assert blame(refusal, TargetChange((lookalike, meant)), ()) == frozenset({lookalike})


def test_all_named_ones_are_found_and_no_namesake() -> None:
    """Every identity in ARM's message is found; `reader-2` in it does not stand for `reader`."""
    both = ArmRefusal(403, "LinkedAuthorizationFailed", LINKED.format(f"{A.text},{B.text}"))
    assert blame(both, TargetChange((A, B)), ()) == frozenset({A, B})
    second = ArmRefusal(403, "LinkedAuthorizationFailed", LINKED.format(B.text))
    assert blame(second, TargetChange((A, B)), ()) == frozenset({B})
    assert blame(ArmRefusal(400, "X", f"cannot find {A.text}"), TargetChange((A, B)), ()) == frozenset({A})


def test_one_that_is_there_already_is_found_too() -> None:
    """An identity that is on the target already may be the cause.

    Once deleted in Azure, it fails every later PATCH of its scale set.
    """
    refusal = ArmRefusal(400, "FailedIdentityOperation", f"The resource {B.text} was not found.")
    assert blame(refusal, TargetChange((A,)), [B]) == frozenset({B})


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (403, "LinkedAuthorizationFailed", Blame.UNNAMED),
        (400, "FailedIdentityOperation", Blame.UNNAMED),
        (400, "", Blame.UNNAMED),
        (200, "SomethingElse", Blame.UNNAMED),
        (200, "InternalExecutionError", Blame.TARGET),
        (200, "", Blame.TARGET),
        (403, "AuthorizationFailed", Blame.TARGET),
        (404, "ResourceNotFound", Blame.TARGET),
        (409, "OperationNotAllowed", Blame.TARGET),
        (429, "TooManyRequests", Blame.TARGET),
        (503, "", Blame.TARGET),
        (0, "", Blame.TARGET),
    ],
)
def test_without_a_name_the_code_decides(status: int, code: str, expected: Blame) -> None:
    """When ARM names no identity, status and code tell whether an identity is at fault or the target as a whole."""
    assert blame(ArmRefusal(status, code, "it went wrong"), TargetChange((A, B)), ()) is expected


def test_a_removal_alone_has_no_bad_addition() -> None:
    """A PATCH that only removes identities has no bad addition to set aside when it is refused."""
    assert blame(ArmRefusal(400, "FailedIdentityOperation", "no"), TargetChange((), (A,)), ()) is Blame.TARGET


def test_a_missing_role_is_told_with_what_to_grant_to_whom() -> None:
    """The sentence names the role, the identity to grant it on, and who needs it, as far as ARM's message says that."""
    message = advise_identity(ArmRefusal(403, "LinkedAuthorizationFailed", LINKED.format(A.text)), A, make.target())
    assert message == (
        f"MIC may not assign {A} to scale set ss; grant Managed Identity Operator on {A} to "
        "object ID o-1 (MIC, client ID c-1)"
    )
    assert message.count(A.text) == 2
    silent = advise_identity(ArmRefusal(403, "LinkedAuthorizationFailed", "no"), A, make.target())
    assert silent.endswith("to MIC's own identity")
    short = advise_identity(ArmRefusal(403, "LinkedAuthorizationFailed", "The client 'c-1' may not"), A, make.target())
    assert short.endswith("to client ID c-1 (MIC)")


@pytest.mark.parametrize(
    ("refusal", "said"),
    [
        (ArmRefusal(400, "FailedIdentityOperation", "The resource was not found."), "create that identity, or correct"),
        (ArmRefusal(400, "BadRequest", ""), "BadRequest: status 400; correct the identity"),
        (ArmRefusal(400, "", "some  words\nhere."), "some words here; correct the identity"),
    ],
)
def test_other_refusals_are_told_in_arms_words(refusal: ArmRefusal, said: str) -> None:
    """The sentence has ARM's words and adds what to do."""
    assert said in advise_identity(refusal, A, make.target())


@pytest.mark.parametrize(
    ("refusal", "said"),
    [
        (
            ArmRefusal(403, "AuthorizationFailed", "The client 'c' with object id 'o'"),
            "grant Virtual Machine Contributor",
        ),
        (ArmRefusal(429, "TooManyRequests", "slow"), "Azure throttles scale set ss: TooManyRequests: slow"),
        (ArmRefusal(500, "", "oh"), "scale set ss cannot be changed now: oh; MIC tries again"),
        (ArmRefusal(400, "FailedIdentityOperation", "gone"), "take it off scale set ss"),
    ],
)
def test_what_holds_a_target_is_told_too(refusal: ArmRefusal, said: str) -> None:
    """A refusal of the whole target is reported for every identity that waits for it."""
    assert said in advise_target(refusal, make.target())
