"""Which identity's token a pod's request gets, how long a choice is reused, and what is remembered of a pod."""

from collections.abc import Sequence
from dataclasses import replace

import make
from podidentity.core.model.arm import IdentityId
from podidentity.core.model.identities import (
    AzureAssignedIdentity,
    AzureIdentity,
    AzurePodIdentityException,
    IdentityType,
    ObjectKey,
    SecretReference,
)
from podidentity.core.model.matching import Match
from podidentity.core.model.snapshot import Pod
from podidentity.core.tokens.choosing import NotReady
from podidentity.core.tokens.imds import Refusal, TokenRequest
from podidentity.core.tokens.sources import ManagedIdentity, ServicePrincipal
from podidentity.nmi.access import MISSING_SECONDS, SETTLED_SECONDS, Access
from podidentity.nmi.answers import Permission
from podidentity.nmi.ports import WATCH_TRUSTED_SECONDS
from podidentity.nmi.settings import Settings

POD = make.pod()
RESOURCE = "https://vault.azure.net"
REQUEST = TokenRequest(RESOURCE)
EXCEPTION = AzurePodIdentityException(ObjectKey("default", "exempt"), {"app": "exempt"})


class Grants:
    """The identities, bindings and exceptions of a node's pods; `questions` are the pods that were looked up."""

    def __init__(self, *assigned_identities: AzureAssignedIdentity) -> None:
        self.revision = 0
        self.decides = False
        self.assigned_identities = assigned_identities
        self.matches: tuple[Match, ...] = ()
        self.exceptions: tuple[AzurePodIdentityException, ...] = ()
        self.machine: dict[IdentityId, float] = {}
        self.questions: list[ObjectKey] = []

    def revision_of(self, pod: Pod) -> int:
        """Return the number of the last change, whatever pod it concerned."""
        del pod
        return self.revision

    def grants_confirmed_at(self) -> float:
        """Return when the watches were last confirmed: at second 0."""
        return 0.0

    def there_since(self, identity: IdentityId) -> float | None:
        """Return since when MIC says that an identity is on the machine."""
        return self.machine.get(identity)

    def assigned_to(self, pod: Pod) -> Sequence[AzureAssignedIdentity]:
        """Return the identities that a pod is assigned."""
        self.questions.append(pod.key)
        return [item for item in self.assigned_identities if item.pod == pod.key]

    def bound_to(self, pod: Pod) -> Sequence[Match]:
        """Return the identities that bindings give a pod."""
        return [match for match in self.matches if match.pod is pod]

    def exceptions_in(self, namespace: str) -> Sequence[AzurePodIdentityException]:
        """Return the exceptions of a namespace."""
        return [exception for exception in self.exceptions if exception.key.namespace == namespace]


def access_to(grants: Grants, **settings: object) -> Access:
    """Build the `Access` under test."""
    return Access(grants, Settings("n1", **settings))  # type: ignore[arg-type]  # tests name any field


def status_of(choice: object) -> int:
    """Return the status of a refusal."""
    assert isinstance(choice, Refusal)
    return choice.status


def permission(choice: object) -> Permission:
    """Return a choice that must be a permission."""
    assert isinstance(choice, Permission)
    return choice


def test_an_assigned_identity_permits_its_own_source() -> None:
    """The permission names the source, the identity and all else that the answer and its audit line need."""
    assigned_identity = make.assigned()
    choice = permission(access_to(Grants(assigned_identity)).choice(POD, REQUEST, 0.0))
    assert (choice.pod, choice.identity) == (POD, assigned_identity.identity)
    assert choice.binding == assigned_identity.binding
    assert choice.source == ManagedIdentity(resource_id=assigned_identity.identity.resource_id)


def test_what_was_not_confirmed_for_too_long_permits_nothing() -> None:
    """Once the watches are unconfirmed for longer than the limit, even a choice made earlier permits nothing."""
    access = access_to(Grants(make.assigned()))
    assert permission(access.choice(POD, REQUEST, float(WATCH_TRUSTED_SECONDS)))
    refusal = access.choice(POD, REQUEST, WATCH_TRUSTED_SECONDS + 0.5)
    assert status_of(refusal) == 503
    assert isinstance(refusal, Refusal)
    assert "has not been confirmed" in refusal.message


def test_a_choice_is_reused_until_anything_changes() -> None:
    """A choice is reused for the same request, the same pod object and the same revision of the stores.

    The pod's assigned identities are looked up once for all its requests of a revision: a tenant may have many requests
    waiting, and change objects all the time.
    """
    grants = Grants(make.assigned())
    access = access_to(grants)
    choice = permission(access.choice(POD, REQUEST, 0.0))
    assert access.choice(POD, REQUEST, 1.0) is choice
    assert len(grants.questions) == 1
    other = access.choice(POD, TokenRequest("https://other.example"), 0.0)
    assert other is not choice
    assert access.choice(POD, REQUEST, 1.0) is choice
    assert access.choice(POD, TokenRequest("https://other.example"), 0.0) is other
    grants.assigned_identities = ()
    assert access.choice(POD, REQUEST, 1.0) is choice
    grants.revision = 1
    assert status_of(access.choice(POD, REQUEST, 1.0)) == 400
    access.choice(POD, TokenRequest("https://third.example"), 1.0)
    assert len(grants.questions) == 2


def test_an_older_revision_is_another_one_too() -> None:
    """A choice counts for exactly the revision of the stores that it was made for, not for an older one either."""
    grants = Grants(make.assigned())
    grants.revision = 5
    access = access_to(grants)
    access.choice(POD, REQUEST, 0.0)
    grants.assigned_identities, grants.revision = (), 4
    assert status_of(access.choice(POD, REQUEST, 0.0)) == 400


def test_a_pod_that_changed_is_decided_anew() -> None:
    """A pod with the same UID but another label is another object, for which the old choice does not count."""
    access = access_to(Grants(make.assigned()))
    permission(access.choice(POD, REQUEST, 0.0))
    bare = replace(POD, labels={})
    assert status_of(access.choice(bare, REQUEST, 0.0)) == 400
    assert permission(access.choice(POD, REQUEST, 0.0))


def test_choices_of_one_pod_are_bounded_and_cost_no_other_pod_its_own() -> None:
    """A pod has room for 64 remembered choices; its 65th different request empties that room, and no other pod's."""
    neighbour = make.pod("neighbour")
    grants = Grants(make.assigned(), make.assigned(neighbour))
    access = access_to(grants)
    first = access.choice(POD, REQUEST, 0.0)
    kept = access.choice(neighbour, REQUEST, 0.0)
    for number in range(63):
        access.choice(POD, TokenRequest(f"https://{number}.example"), 0.0)
    assert access.choice(POD, REQUEST, 0.0) is first
    access.choice(POD, TokenRequest("https://one-more.example"), 0.0)
    assert access.choice(POD, REQUEST, 0.0) is not first
    assert access.choice(neighbour, REQUEST, 0.0) is kept


def test_a_pod_waits_for_its_first_identity_and_not_for_one_that_was_taken_away() -> None:
    """The identities that a pod has had are remembered by its UID and refused at once; any other is waited for."""
    grants = Grants()
    access = access_to(grants)
    assert isinstance(access.choice(POD, REQUEST, 0.0), NotReady)
    grants.assigned_identities, grants.revision = (make.assigned(), make.assigned(azure=make.identity("second"))), 1
    for client_id in ("client-of-reader", "client-of-second"):
        assert permission(access.choice(POD, TokenRequest(RESOURCE, client_id=client_id), 0.0))
    grants.assigned_identities, grants.revision = (), 2
    for client_id in ("client-of-reader", "client-of-second"):
        assert status_of(access.choice(POD, TokenRequest(RESOURCE, client_id=client_id), 0.0)) == 400
    assert isinstance(access.choice(POD, TokenRequest(RESOURCE, client_id="never-had"), 0.0), NotReady)
    assert isinstance(access.choice(replace(POD, uid="its-successor"), REQUEST, 0.0), NotReady)
    access.forget(POD.uid)
    assert isinstance(access.choice(POD, TokenRequest(RESOURCE, client_id="client-of-reader"), 0.0), NotReady)


def test_a_pod_that_is_gone_is_forgotten_and_no_other() -> None:
    """The choices of a deleted pod are forgotten, so that they do not keep the pod's object in memory."""
    neighbour = make.pod("neighbour")
    access = access_to(Grants(make.assigned(), make.assigned(neighbour)))
    first, kept = access.choice(POD, REQUEST, 0.0), access.choice(neighbour, REQUEST, 0.0)
    access.forget(POD.uid)
    access.forget("nobody")
    assert access.choice(POD, REQUEST, 0.0) is not first
    assert access.choice(neighbour, REQUEST, 0.0) is kept


def test_edits_of_an_identity_are_not_remembered_for_ever() -> None:
    """Of a thousand client IDs that a pod had, the last is refused at once; the first is forgotten and waited for."""
    access = access_to(Grants())
    for edit in range(1000):
        access.note_identity(POD.uid, make.identity(client_id=f"client-{edit}"))
    last = access.choice(POD, TokenRequest(RESOURCE, client_id="client-999"), 0.0)
    first = access.choice(POD, TokenRequest(RESOURCE, client_id="client-0"), 0.0)
    assert status_of(last) == 400
    assert isinstance(first, NotReady)


def test_as_many_identities_as_a_pod_may_have_are_remembered_at_once() -> None:
    """NMI remembers 64 identities that a pod has had; with the next one the memory starts again."""
    access = access_to(Grants())
    for number in range(64):
        access.note_identity(POD.uid, make.identity(client_id=f"client-{number}"))
    for client_id in ("client-0", "client-63"):
        assert status_of(access.choice(POD, TokenRequest(RESOURCE, client_id=client_id), 0.0)) == 400
    access.note_identity(POD.uid, make.identity(client_id="client-64"))
    access.forget("nobody")
    assert isinstance(access.choice(POD, TokenRequest(RESOURCE, client_id="client-1"), 0.0), NotReady)


def test_excepted_pods_and_mic_are_answered_as_imds_would() -> None:
    """An excepted pod, and MIC's pod in MIC's namespace, gets any identity that it names; no other pod does."""
    grants = Grants(make.assigned())
    grants.exceptions = (EXCEPTION, replace(EXCEPTION, key=ObjectKey("other", "exempt")))
    access = access_to(grants)
    request = TokenRequest(RESOURCE, client_id="anybodys")
    for pod in (replace(POD, labels={**POD.labels, "app": "exempt"}), make.mic_pod()):
        choice = permission(access.choice(pod, request, 0.0))
        assert (choice.pod, choice.identity, choice.binding) == (pod, None, None)
        assert choice.source == ManagedIdentity(client_id="anybodys")
    assert isinstance(access.choice(POD, request, 0.0), NotReady)
    elsewhere = access_to(grants, mic_namespace="podidentity-system")
    assert status_of(elsewhere.choice(make.mic_pod(), request, 0.0)) == 400


def principal(namespace: str) -> AzureIdentity:
    """Build a service principal of `default` whose Secret is in a namespace."""
    return make.identity(
        type=IdentityType.SERVICE_PRINCIPAL,
        tenant_id="a-tenant",
        client_password=SecretReference(namespace, "secret"),
    )


def test_a_secret_that_may_not_be_read_permits_nothing_and_is_no_identity_that_the_pod_had() -> None:
    """A foreign Secret or unknown cloud is refused with 503; the pod then waits as if it never had an identity."""
    foreign = principal("foreign")
    grants = Grants(make.assigned(azure=foreign))
    access = access_to(grants)
    assert status_of(access.choice(POD, REQUEST, 0.0)) == 503
    grants.assigned_identities, grants.revision = (), 1
    assert isinstance(access.choice(POD, REQUEST, 0.0), NotReady)
    grants.assigned_identities, grants.revision = (make.assigned(azure=foreign),), 2
    allowing = access_to(grants, secret_namespaces=frozenset({"foreign"}))
    assert isinstance(permission(allowing.choice(POD, REQUEST, 0.0)).source, ServicePrincipal)
    grants.assigned_identities = (make.assigned(azure=principal("default")),)
    assert isinstance(permission(access_to(grants).choice(POD, REQUEST, 0.0)).source, ServicePrincipal)
    assert status_of(access_to(grants, logins=frozenset({"https://own.example"})).choice(POD, REQUEST, 0.0)) == 503


def test_in_managed_mode_bindings_count_alone() -> None:
    """Assigned identities count for nothing; a pod without a binding is refused at once with upstream's status."""
    grants = Grants(make.assigned())
    access = access_to(grants, managed_mode=True, force_namespaced=True)
    assert status_of(access.choice(POD, REQUEST, 0.0)) == 404
    match = Match(POD, make.binding(), make.identity())
    grants.matches, grants.revision = (match,), 1
    choice = permission(access.choice(POD, REQUEST, 0.0))
    assert (choice.identity, choice.binding) == (match.identity, match.binding)
    grants.matches, grants.revision = (), 2
    assert status_of(access.choice(POD, REQUEST, 0.0)) == 400
    assert grants.questions == []


def test_namespaced_nmi_gives_nothing_of_another_namespace() -> None:
    """A namespaced NMI ignores an assigned identity of another namespace, such as one by a MIC without the flag."""
    grants = Grants(make.assigned(azure=make.identity(namespace="other")))
    assert permission(access_to(grants).choice(POD, REQUEST, 0.0))
    assert isinstance(access_to(grants, force_namespaced=True).choice(POD, REQUEST, 0.0), NotReady)


def test_what_imds_does_not_know_is_not_there_for_some_seconds_where_nmi_decides() -> None:
    """NMI asks IMDS again after some seconds; where NMI goes by MIC's objects, IMDS's refusal counts at once."""
    grants = Grants(make.assigned())
    access = access_to(grants)
    choice = permission(access.choice(POD, REQUEST, 0.0))
    assert not access.note_missing(choice, 0.0)
    grants.decides = True
    assert access.note_missing(choice, 0.0)
    assert isinstance(access.choice(POD, REQUEST, MISSING_SECONDS - 0.5), NotReady)
    assert permission(access.choice(POD, REQUEST, MISSING_SECONDS + 0.5))


def test_of_an_identity_that_mic_has_named_for_long_imds_has_the_last_word() -> None:
    """An identity that MIC has long reported and IMDS does not know was deleted in Azure: no request waits for it."""
    grants = Grants(make.assigned())
    grants.decides = True
    access = access_to(grants)
    choice = permission(access.choice(POD, REQUEST, 0.0))
    grants.machine = {make.identity_id("reader"): 10.0}
    assert access.note_missing(choice, 10.0 + SETTLED_SECONDS)
    assert not access.note_missing(choice, 10.5 + SETTLED_SECONDS)
    grants.machine = {make.identity_id("other"): 10.0}
    assert access.note_missing(choice, 10.5 + SETTLED_SECONDS)


def test_it_is_asked_again_when_the_first_of_those_seconds_are_over() -> None:
    """A missing identity is asked for when its seconds are over, or once MIC reports it on the machine."""
    grants = Grants(make.assigned())
    grants.decides = True
    access = access_to(grants)
    assert access.recheck_seconds(7.0) == float("inf")
    choice = permission(access.choice(POD, REQUEST, 0.0))
    access.note_missing(choice, 10.0)
    assert [access.recheck_seconds(now) for now in (10.0, 12.0, 99.0)] == [5.0, 3.0, 0.0]
    assert access.take_missing([make.identity_id("other")]) == ()
    assert access.take_missing([make.identity_id("reader")]) == (choice.source,)
    assert permission(access.choice(POD, REQUEST, 12.0)) is not choice
