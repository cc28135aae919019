"""Which identity answers a token request."""

from collections.abc import Collection
from dataclasses import replace

import pytest

import make
from podidentity.core import choosing
from podidentity.core.choosing import Chosen, Refused, Wait
from podidentity.core.identities import AssignedState, AzureAssignedIdentity, AzureIdentity
from podidentity.core.imds import TokenRequest
from podidentity.core.matching import Match

READER = make.assigned()
WRITER = make.assigned(azure=make.identity("writer"))


def choose(
    *assigned: AzureAssignedIdentity, had: Collection[AzureIdentity] = (), **asked: str
) -> Chosen | Wait | Refused:
    """Choose for the usual pod."""
    request = TokenRequest(**{"resource": "https://vault.azure.net", **asked})
    return choosing.choose(make.pod(), request, assigned, had=had)


def test_the_first_in_binding_order_answers_when_none_is_named() -> None:
    """As upstream's standard mode does."""
    assert choose(WRITER, READER) == Chosen(READER.identity, READER.binding)


def test_a_named_identity_answers_without_regard_to_case() -> None:
    """Upstream compared once with case and once without."""
    writer = Chosen(WRITER.identity, WRITER.binding)
    assert choose(READER, WRITER, client_id="CLIENT-of-writer") == writer
    assert choose(READER, WRITER, resource_id=make.resource_id("writer").upper()) == writer


def test_nothing_assigned_yet_means_waiting_for_creation() -> None:
    """MIC has not written the object yet."""
    assert choose() == Wait(AssignedState.CREATED, "no assigned identity for pod default/web")
    assert "client ID" in str(choose(READER, client_id="other"))
    assert "/x" in str(choose(READER, resource_id="/x"))


def test_a_created_object_means_waiting_for_azure() -> None:
    """The PATCH is under way."""
    waiting = choose(replace(READER, state=AssignedState.CREATED))
    assert isinstance(waiting, Wait)
    assert waiting.until == AssignedState.ASSIGNED


def test_a_pod_without_the_label_is_told_at_once_in_imds_words() -> None:
    """Clients go on with their credential chain without a retry."""
    unlabelled = make.pod(selector="")
    refused = choosing.choose(unlabelled, TokenRequest("r"), [READER])
    assert refused == Refused(400, "Identity not found")


def test_an_object_id_is_not_known_to_match() -> None:
    """Upstream ignored it and gave the first identity's token."""
    assert choose(READER, object_id="o") == Refused(400, "Identity not found")


def test_a_pod_whose_assignment_was_taken_away_is_told_at_once() -> None:
    """There is nothing to wait for: neither for any identity, nor for the one that is named."""
    had = {READER.identity, WRITER.identity}
    assert choose(had=had) == Refused(400, "Identity not found")
    assert choose(WRITER, had=had, client_id="client-of-reader") == Refused(400, "Identity not found")
    bound = choosing.choose_bound(make.pod(), TokenRequest("r"), [], had=had)
    assert bound == Refused(400, "Identity not found")


def test_what_the_pod_never_had_or_is_on_its_way_is_waited_for() -> None:
    """Another identity that is still to come, or the same one once more."""
    assert isinstance(choose(READER, had={READER.identity}, client_id="client-of-writer"), Wait)
    assert isinstance(choose(replace(READER, state=AssignedState.CREATED), had={READER.identity}), Wait)


@pytest.mark.parametrize("force_namespaced", [True, False])
@pytest.mark.parametrize("annotated", [True, False])
def test_namespaced_identities_serve_their_own_namespace(*, force_namespaced: bool, annotated: bool) -> None:
    """By the flag or the annotation; NMI sees to it whatever MIC has written."""
    foreign = make.assigned(azure=make.identity("reader", "team-b", namespaced=annotated))
    own = make.assigned(azure=make.identity("writer", namespaced=annotated))
    found = choosing.choose(make.pod(), TokenRequest("r"), [foreign, own], force_namespaced=force_namespaced)
    chosen = own if force_namespaced or annotated else min((foreign, own), key=lambda one: one.binding.key)
    assert found == Chosen(chosen.identity, chosen.binding)
    alone = choosing.choose(make.pod(), TokenRequest("r"), [foreign], force_namespaced=force_namespaced)
    assert isinstance(alone, Wait if force_namespaced or annotated else Chosen)


@pytest.mark.parametrize(
    "stale",
    [
        replace(READER, node="n2"),
        replace(READER, binding=make.binding(selector="other")),
        replace(READER, state=AssignedState.UNASSIGNED),
        replace(READER, deleting=True),
        replace(READER, pod=make.pod("other").key),
    ],
)
def test_a_statement_that_no_longer_holds_does_not_count(stale: AzureAssignedIdentity) -> None:
    """It carries no UID: node and label are checked again at each request."""
    assert isinstance(choose(stale), Wait)


def test_managed_mode_takes_the_first_binding_or_the_named_identity() -> None:
    """No MIC, no waiting."""
    pod = make.pod()
    bound = [Match(pod, one.binding, one.identity) for one in (READER, WRITER)]
    assert choosing.choose_bound(pod, TokenRequest("r"), bound) == Chosen(READER.identity, READER.binding)
    named = choosing.choose_bound(pod, TokenRequest("r", client_id="client-of-writer"), bound)
    assert named == Chosen(WRITER.identity, WRITER.binding)
    refused = choosing.choose_bound(pod, TokenRequest("r"), [])
    assert isinstance(refused, Refused)
    assert refused.status == 404
    assert choosing.choose_bound(make.pod(selector=""), TokenRequest("r"), bound) == Refused(400, "Identity not found")
