"""What is remembered of a pod's identities has an end, however often they are edited."""

from collections.abc import Sequence

import make
from podidentity.core.choosing import Wait
from podidentity.core.identities import AzureAssignedIdentity, AzurePodIdentityException, ObjectKey
from podidentity.core.imds import Refusal, TokenRequest
from podidentity.core.matching import Match
from podidentity.nmi.access import Access
from podidentity.nmi.settings import Settings

POD = make.pod()


class NothingGranted:
    """Grants of a node whose pods have lost everything."""

    revision = 0

    def granted_as_of(self) -> float:
        """Say that this is true now."""
        return 0.0

    def assigned_to(self, _: ObjectKey) -> Sequence[AzureAssignedIdentity]:
        """Return nothing, as the others do."""
        return ()

    def bound_to(self, _: object) -> Sequence[Match]:
        """Return nothing."""
        return ()

    def exceptions_in(self, _: str) -> Sequence[AzurePodIdentityException]:
        """Return nothing."""
        return ()


def test_edits_of_an_identity_are_not_remembered_for_ever() -> None:
    """The pod had a thousand client IDs: the last one taken away is refused at once, the first is as if never had."""
    access = Access(NothingGranted(), Settings("n1"))
    for edit in range(1000):
        access.note_given(POD.uid, make.identity(client_id=f"client-{edit}"))
    last = access.choice(POD, TokenRequest("https://vault.azure.net", client_id="client-999"), 0.0)
    first = access.choice(POD, TokenRequest("https://vault.azure.net", client_id="client-0"), 0.0)
    assert isinstance(last, Refusal)
    assert last.status == 400
    assert isinstance(first, Wait)
