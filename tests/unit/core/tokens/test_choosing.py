"""Which identity answers a token request."""

from collections.abc import Collection
from dataclasses import replace

import pytest

import make
from podidentity.core.model.identities import AssignedState, AzureAssignedIdentity, AzureIdentity, ObjectKey
from podidentity.core.model.matching import Match
from podidentity.core.tokens import choosing
from podidentity.core.tokens.choosing import IdentityChoice, NoIdentity, NotReady
from podidentity.core.tokens.imds import TokenRequest

READER = make.assigned()
WRITER = make.assigned(azure=make.identity("writer"))


def choose(
    *assigned: AzureAssignedIdentity, had: Collection[AzureIdentity] = (), **asked: str
) -> IdentityChoice | NotReady | NoIdentity:
    """Choose for the usual pod."""
    request = TokenRequest(**{"resource": "https://vault.azure.net", **asked})
    return choosing.choose(make.pod(), request, assigned, earlier_identities=had)


def test_the_first_in_binding_order_answers_when_none_is_named() -> None:
    """A request that names no identity gets the first one in binding order, as in upstream's standard mode."""
    assert choose(WRITER, READER) == IdentityChoice(READER.identity, READER.binding)


@pytest.mark.parametrize("client_id", ["", "client-of-reader"])
def test_the_pods_own_namespace_comes_before_all_others(client_id: str) -> None:
    """An identity of a namespace that sorts first, with the same client ID, does not step in front of the pod's own."""
    own_identity = make.assigned()
    foreign_key = ObjectKey("a-team", "reader")
    foreign = replace(
        own_identity,
        identity=replace(own_identity.identity, key=foreign_key, resource_id=make.resource_id("attacker")),
        binding=replace(own_identity.binding, key=foreign_key),
    )
    assert choose(foreign, own_identity, client_id=client_id) == IdentityChoice(
        own_identity.identity, own_identity.binding
    )
    matches = [Match(make.pod(), item.binding, item.identity) for item in (foreign, own_identity)]
    request = TokenRequest(resource="https://vault.azure.net", client_id=client_id)
    assert choosing.choose_bound(make.pod(), request, matches) == IdentityChoice(
        own_identity.identity, own_identity.binding
    )


def test_a_named_identity_answers_without_regard_to_case() -> None:
    """Client IDs and resource IDs compare without case.

    Upstream compared them in one place with case, in another without.
    """
    writer = IdentityChoice(WRITER.identity, WRITER.binding)
    assert choose(READER, WRITER, client_id="CLIENT-of-writer") == writer
    assert choose(READER, WRITER, resource_id=make.resource_id("writer").upper()) == writer


def test_a_look_alike_of_a_resource_id_names_nothing() -> None:
    """A Kelvin sign in a resource ID does not match the letter `k`, here as in the allow list and in MIC's plan."""
    keys = make.assigned(azure=make.identity("keys"))
    assert choose(keys, resource_id=make.resource_id("keys").upper()) == IdentityChoice(keys.identity, keys.binding)
    assert isinstance(choose(keys, resource_id=make.resource_id("\u212aeys")), NotReady)


def test_nothing_assigned_yet_means_waiting_for_creation() -> None:
    """A pod without a matching assigned identity waits for MIC to create one; the message says what was looked for."""
    assert choose() == NotReady(AssignedState.CREATED, "no assigned identity for pod default/web")
    assert "client ID" in str(choose(READER, client_id="other"))
    assert "/x" in str(choose(READER, resource_id="/x"))


def test_a_created_object_means_waiting_for_azure() -> None:
    """A created object means that the PATCH is under way, so the pod waits for Azure."""
    waiting = choose(replace(READER, state=AssignedState.CREATED))
    assert isinstance(waiting, NotReady)
    assert waiting.until == AssignedState.ASSIGNED


def test_a_pod_without_the_label_is_told_at_once_in_imds_words() -> None:
    """The refusal is IMDS's own for a machine without identity.

    SDKs then try their next credential without a retry.
    """
    unlabelled = make.pod(selector="")
    refusal = choosing.choose(unlabelled, TokenRequest("r"), [READER])
    assert refusal == NoIdentity(400, "Identity not found")


def test_an_object_id_is_not_known_to_match() -> None:
    """A request by object ID is refused.

    Upstream ignored the object ID and answered with the first identity's token.
    """
    assert choose(READER, object_id="o") == NoIdentity(400, "Identity not found")


def test_a_pod_whose_assignment_was_taken_away_is_told_at_once() -> None:
    """A pod that had the identity and lost it is refused at once.

    There is nothing to wait for, whether the request names the identity or not.
    """
    had = {READER.identity, WRITER.identity}
    assert choose(had=had) == NoIdentity(400, "Identity not found")
    assert choose(WRITER, had=had, client_id="client-of-reader") == NoIdentity(400, "Identity not found")
    bound = choosing.choose_bound(make.pod(), TokenRequest("r"), [], earlier_identities=had)
    assert bound == NoIdentity(400, "Identity not found")


def test_what_the_pod_never_had_or_is_on_its_way_is_waited_for() -> None:
    """A pod waits for an identity that it never had, and for one that is being assigned to it again."""
    assert isinstance(choose(READER, had={READER.identity}, client_id="client-of-writer"), NotReady)
    assert isinstance(choose(replace(READER, state=AssignedState.CREATED), had={READER.identity}), NotReady)


@pytest.mark.parametrize("force_namespaced", [True, False])
@pytest.mark.parametrize("annotated", [True, False])
def test_namespaced_identities_serve_their_own_namespace(*, force_namespaced: bool, annotated: bool) -> None:
    """With the flag or the annotation, NMI itself refuses identities of other namespaces, whatever MIC has written."""
    foreign = make.assigned(azure=make.identity("reader", "team-b", namespaced=annotated))
    own_identity = make.assigned(azure=make.identity("writer", namespaced=annotated))
    result = choosing.choose(make.pod(), TokenRequest("r"), [foreign, own_identity], force_namespaced=force_namespaced)
    choice = (
        own_identity
        if force_namespaced or annotated
        else min((foreign, own_identity), key=lambda item: item.binding.key)
    )
    assert result == IdentityChoice(choice.identity, choice.binding)
    alone = choosing.choose(make.pod(), TokenRequest("r"), [foreign], force_namespaced=force_namespaced)
    assert isinstance(alone, NotReady if force_namespaced or annotated else IdentityChoice)


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
    """An assigned identity of another node, label or pod, or one that is being removed, does not count.

    The object carries no UID of its pod, so that node and label are checked at each request.
    """
    assert isinstance(choose(stale), NotReady)


def test_managed_mode_takes_the_first_binding_or_the_named_identity() -> None:
    """Managed mode takes the first binding or the named identity; there is no MIC to wait for."""
    pod = make.pod()
    bound = [Match(pod, item.binding, item.identity) for item in (READER, WRITER)]
    assert choosing.choose_bound(pod, TokenRequest("r"), bound) == IdentityChoice(READER.identity, READER.binding)
    named = choosing.choose_bound(pod, TokenRequest("r", client_id="client-of-writer"), bound)
    assert named == IdentityChoice(WRITER.identity, WRITER.binding)
    refusal = choosing.choose_bound(pod, TokenRequest("r"), [])
    assert isinstance(refusal, NoIdentity)
    assert refusal.status == 404
    assert choosing.choose_bound(make.pod(selector=""), TokenRequest("r"), bound) == NoIdentity(
        400, "Identity not found"
    )


@pytest.mark.parametrize("other", ["a", "zz"], ids=["sorted-before", "sorted-after"])
def test_what_is_written_for_something_else_never_counts(other: str) -> None:
    """An assigned identity of another pod, namespace, node or selector does not count, however the names sort."""
    key = READER.pod
    for foreign in (
        replace(READER, node=other),
        replace(READER, pod=key._replace(name=other)),
        replace(READER, pod=key._replace(namespace=other)),
        replace(READER, binding=replace(READER.binding, selector=other)),
    ):
        assert choose(foreign) == NotReady(AssignedState.CREATED, "no assigned identity for pod default/web")


@pytest.mark.parametrize("other", ["a", "zz"], ids=["sorted-before", "sorted-after"])
@pytest.mark.parametrize("parts", [("binding",), ("identity",), ("binding", "identity")], ids="+".join)
def test_in_namespaced_mode_another_namespace_never_counts(parts: tuple[str, ...], other: str) -> None:
    """In namespaced mode neither the binding nor the identity may be of another namespace, however the names sort."""
    foreign = READER
    for part in parts:
        full = getattr(foreign, part)
        foreign = replace(foreign, **{part: replace(full, key=full.key._replace(namespace=other))})
    answer = choosing.choose(make.pod(), TokenRequest("r"), [foreign], force_namespaced=True)
    assert answer == NotReady(AssignedState.CREATED, "no assigned identity for pod default/web")
    assert choosing.choose(make.pod(), TokenRequest("r"), [foreign]) == IdentityChoice(
        foreign.identity, foreign.binding
    )


@pytest.mark.parametrize("other", ["/", "/x"], ids=["sorted-before", "sorted-after"])
def test_an_identity_answers_for_its_own_resource_id_alone(other: str) -> None:
    """A request for another resource ID is not answered with this identity, whichever of the two sorts first."""
    assert isinstance(choose(READER, resource_id=other), NotReady)


def test_equal_names_that_two_watches_brought_are_equal() -> None:
    """Names compare by value: two watches bring the same name as two different string objects."""
    pod = make.pod()
    node, namespace, selector = (bytes(text, "ascii").decode() for text in (pod.node, pod.key.namespace, pod.selector))
    key = READER.identity.key._replace(namespace=namespace)
    present = replace(
        READER,
        node=node,
        identity=replace(READER.identity, key=key),
        binding=replace(READER.binding, selector=selector),
    )
    bound = present.binding.key._replace(namespace=bytes(namespace, "ascii").decode())
    present = replace(present, binding=replace(present.binding, key=bound))
    assert present.binding.selector is not pod.selector
    assert bound.namespace is not pod.key.namespace
    answer = choosing.choose(pod, TokenRequest("r"), [present], force_namespaced=True)
    assert answer == IdentityChoice(present.identity, present.binding)


def test_an_identity_that_was_taken_off_counts_for_nothing() -> None:
    """An identity that was taken off counts for nothing: the pod waits until MIC writes a new object."""
    gone = replace(READER, state=AssignedState.UNASSIGNED)
    assert choose(gone) == NotReady(AssignedState.CREATED, "no assigned identity for pod default/web")
