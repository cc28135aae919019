"""NMI's own decision is the one that MIC's objects would have led to."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

import make
from podidentity.core.assignment import assigning, planning
from podidentity.core.assignment.assigning import Offers
from podidentity.core.assignment.planning import Delete
from podidentity.core.assignment.pod_assignments import pod_assignments
from podidentity.core.model.arm import ArmState
from podidentity.core.model.identities import AssignedState, AzureAssignedIdentity, AzureIdentity
from podidentity.core.model.policy import Policy
from podidentity.core.model.snapshot import Pod, Snapshot
from podidentity.core.tokens import choosing
from podidentity.core.tokens.choosing import IdentityChoice, NoIdentity
from podidentity.core.tokens.imds import TokenRequest

NAMES = st.sampled_from(["a", "b", "c"])
SELECTORS = st.sampled_from(["a", "b"])
NAMESPACES = st.sampled_from(["default", "team-a"])
POLICIES = st.builds(make.policy, force_namespaced=st.booleans(), allow_list=st.booleans())
GLOBS = st.sampled_from(["", make.resource_id("*"), f"{make.resource_id('a')},{make.resource_id('b')}"])
CARRIED = st.sampled_from(["abc", "abc", "ab", "c", ""])
CLIENT_IDS = st.sampled_from(["", "client-of-a", "client-of-b", "stale"])
NODES = {
    "n1": make.node("n1", "ss1"),
    "n2": make.node("n2", "ss1"),
    "n3": make.node("n3", "ss2"),
    "n4": make.node("n4", ""),
}
REQUESTS = [
    TokenRequest("https://vault.azure.net"),
    *(TokenRequest("https://vault.azure.net", resource_id=make.resource_id(name)) for name in "abc"),
    *(TokenRequest("https://vault.azure.net", client_id=f"client-of-{name}") for name in "abc"),
    TokenRequest("https://vault.azure.net", client_id="stale"),
]
FEWER = settings(max_examples=150)


def identities() -> st.SearchStrategy[AzureIdentity]:
    """Draw identities of all types, with right, wrong and missing client IDs, some of one resource."""
    return st.builds(
        make.identity,
        NAMES,
        NAMESPACES,
        type=st.sampled_from([0, 0, 0, 1, 7]),
        namespaced=st.booleans(),
        client_id=CLIENT_IDS,
        resource_id=st.one_of(NAMES.map(make.resource_id), NAMES.map(make.resource_id), st.just("malformed")),
    )


@st.composite
def clusters(draw: st.DrawFn) -> Snapshot:
    """Draw small clusters in which names collide often; `targets` has the identities that each machine may have."""
    pods = draw(
        st.lists(
            st.builds(make.pod, NAMES, NAMESPACES, node=st.sampled_from([*NODES]), selector=SELECTORS),
            min_size=1,
            max_size=5,
        )
    )
    bindings = draw(
        st.lists(st.builds(make.binding, NAMES, NAMESPACES, azure_identity=NAMES, selector=SELECTORS), min_size=2)
    )
    snapshot = make.snapshot(
        {pod.key: pod for pod in pods}.values(),
        draw(st.lists(identities(), min_size=2)),
        {binding.key: binding for binding in bindings}.values(),
        nodes=NODES,
    )
    possible = {node: make.state(*draw(CARRIED)) for node in ("n1", "n3", "n4")}
    targets = {make.policy().target_of(NODES[name]): state for name, state in possible.items()}
    allow_list = {namespace: text for namespace in ("default", "team-a") if (text := draw(GLOBS))}
    return replace(snapshot, targets=targets, allow_list=allow_list)


def settled(snapshot: Snapshot, policy: Policy) -> Snapshot:
    """Let MIC work until nothing is left to write.

    `targets` stay, as if Azure refused every identity that is missing.
    """
    for _ in range(4):
        desired = assigning.desired_assignments(snapshot, policy)
        stored = {item.key: item for item in snapshot.assigned_identities}
        writes = planning.plan(desired, snapshot, policy).writes
        for write in writes:
            if isinstance(write, Delete):
                del stored[write.assigned_identity.key]
            else:
                stored[write.assigned_identity.key] = write.assigned_identity
        snapshot = replace(snapshot, assigned_identities=tuple(stored.values()))
        if not writes:
            return snapshot
    raise AssertionError("MIC does not come to an end")


def own(pod: Pod, snapshot: Snapshot, policy: Policy, machine: ArmState | None) -> tuple[AzureAssignedIdentity, ...]:
    """Decide as NMI does: from the bindings with the pod's own selector alone."""
    bindings = tuple(binding for binding in snapshot.bindings if binding.selector == pod.selector)
    offers = Offers(replace(snapshot, bindings=bindings, pods=(), assigned_identities=()), policy)
    return pod_assignments(pod, snapshot.nodes[pod.node], machine, offers, policy)


def outcome(
    pod: Pod, request: TokenRequest, assignments: tuple[AzureAssignedIdentity, ...], *, force_namespaced: bool
) -> IdentityChoice | NoIdentity | None:
    """Return what NMI answers; None when the pod waits."""
    choice = choosing.choose(pod, request, assignments, force_namespaced=force_namespaced)
    return choice if isinstance(choice, IdentityChoice | NoIdentity) else None


@given(clusters(), POLICIES)
@FEWER
def test_own_decision_is_what_the_objects_say(snapshot: Snapshot, policy: Policy) -> None:
    """For every pod and request both lead to the same identity by the same binding, or to a wait."""
    stable = settled(snapshot, policy)
    for pod in stable.pods:
        machine = stable.targets[policy.target_of(NODES[pod.node])]
        objects = tuple(item for item in stable.assigned_identities if item.pod == pod.key)
        decided = own(pod, stable, policy, machine)
        for request in REQUESTS:
            expected = outcome(pod, request, objects, force_namespaced=policy.force_namespaced)
            assert outcome(pod, request, decided, force_namespaced=policy.force_namespaced) == expected


@given(clusters(), POLICIES)
@FEWER
def test_without_knowing_the_machine_nobody_gets_more_than_bindings_give(snapshot: Snapshot, policy: Policy) -> None:
    """The pairs of identity and binding are those of MIC's objects.

    Which identities are on the machine is left to IMDS.
    """
    stable = settled(snapshot, policy)
    for pod in stable.pods:
        objects = {(item.identity.key, item.binding) for item in stable.assigned_identities if item.pod == pod.key}
        decided = own(pod, stable, policy, None)
        assert {(item.identity.key, item.binding) for item in decided} == objects
        assert {item.state for item in decided} <= {AssignedState.ASSIGNED}


@given(clusters(), POLICIES)
@FEWER
def test_what_imds_does_not_know_counts_as_what_is_not_there(snapshot: Snapshot, policy: Policy) -> None:
    """Without MIC's object, IMDS's refusals lead to the decision that MIC's object would have led to."""
    for pod in snapshot.pods:
        machine = snapshot.targets[policy.target_of(NODES[pod.node])]
        # Only ARM reports client IDs; without them both sides use those of AzureIdentities.
        known = own(pod, snapshot, policy, replace(machine, client_ids=()))
        presumed = own(pod, snapshot, policy, None)
        missing = {item.identity.arm_id for item in presumed} - machine.identities - {None}
        for request in REQUESTS:
            by_imds = choosing.choose(
                pod,
                request,
                presumed,
                missing_identities={identity for identity in missing if identity},
                force_namespaced=policy.force_namespaced,
            )
            assert by_imds == choosing.choose(pod, request, known, force_namespaced=policy.force_namespaced)


def test_a_pod_of_another_node_or_namespace_gains_nothing() -> None:
    """A namespaced identity serves its own namespace only, also where NMI decides."""
    snapshot = make.snapshot(
        [make.pod(namespace="team-b")],
        [make.identity(namespace="team-a", namespaced=True)],
        [make.binding(namespace="team-a")],
    )
    assert own(snapshot.pods[0], snapshot, make.policy(), make.state("reader")) == ()


def test_the_client_id_is_the_one_that_arm_reports() -> None:
    """An AzureIdentity with a client ID of another identity answers no request for that client ID."""
    snapshot = make.snapshot([make.pod()], [make.identity(client_id="client-of-writer")], [make.binding()])
    (decided,) = own(snapshot.pods[0], snapshot, make.policy(), make.state("reader"))
    assert decided.identity.client_id == "client-of-reader"


def test_a_pod_has_the_same_bound_as_with_mic() -> None:
    """Of forty identities the first thirty-two in binding order count, as with MIC."""
    names = [f"i{number:02}" for number in range(40)]
    snapshot = make.snapshot(
        [make.pod(selector="web")],
        [make.identity(name) for name in names],
        [make.binding(name, azure_identity=name, selector="web") for name in names],
    )
    snapshot = replace(snapshot, targets={make.target(): make.state(*names)})
    objects = settled(snapshot, make.policy()).assigned_identities
    decided = own(snapshot.pods[0], snapshot, make.policy(), make.state(*names))
    assert len(decided) == assigning.IDENTITIES_PER_POD
    assert set(decided) == set(objects)
