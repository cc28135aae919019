"""What should exist, and what to do about it: examples first, then what must always hold."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import make
from podidentity.core.assignment import assigning, planning
from podidentity.core.assignment.planning import Create, Delete, Mark, Plan, Replace, Write
from podidentity.core.model import matching, steps
from podidentity.core.model.arm import ArmState, IdentityId, Target
from podidentity.core.model.crd import FINALIZER
from podidentity.core.model.identities import (
    AssignedState,
    AzureAssignedIdentity,
    AzureIdentity,
    AzureIdentityBinding,
    IdentityType,
    ObjectKey,
)
from podidentity.core.model.policy import Policy
from podidentity.core.model.snapshot import Pod, Snapshot
from podidentity.core.target import drift
from podidentity.core.target.drift import TargetChange


def plan(snapshot: Snapshot, policy: Policy | None = None) -> Plan:
    """Return the plan for a snapshot."""
    given_policy = policy or make.policy()
    return planning.plan(assigning.desired_assignments(snapshot, given_policy), snapshot, given_policy)


def written(snapshot: Snapshot, writes: Iterable[Write]) -> Snapshot:
    """Carry out writes, as a Kubernetes API would."""
    current = {item.key: item for item in snapshot.assigned_identities}
    for write in writes:
        if isinstance(write, Delete):
            held = tuple(name for name in write.assigned_identity.finalizers if name != FINALIZER)
            gone = current.pop(write.assigned_identity.key)
            if held:
                current[gone.key] = replace(gone, finalizers=held, deleting=True)
        else:
            assert (write.assigned_identity.key in current) == (not isinstance(write, Create))
            current[write.assigned_identity.key] = write.assigned_identity
    return replace(snapshot, assigned_identities=tuple(current.values()))


def applied(snapshot: Snapshot, policy: Policy) -> Snapshot:
    """Carry out everything a plan asks for, Azure included."""
    outcome = plan(snapshot, policy)
    targets, put = dict(snapshot.targets), dict(snapshot.assigned_by_mic)
    for target, in_use in outcome.in_use.items():
        state = targets.get(target, ArmState())
        change = drift.change(in_use, put.get(target, frozenset()), state, policy)
        targets[target] = replace(state, identities=(state.identities | {*change.assign}) - {*change.unassign})
        put[target] = (put.get(target, frozenset()) | {*change.assign}) - {*change.unassign}
    return replace(written(snapshot, outcome.writes), targets=targets, assigned_by_mic=put)


SINGLE_POD = make.snapshot([make.pod()], [make.identity()], [make.binding()])


def test_a_matching_pod_gets_a_created_object() -> None:
    """The object is Created until Azure has the identity, and has upstream's name and namespace."""
    (write,) = plan(SINGLE_POD).writes
    assert isinstance(write, Create)
    assert write.assigned_identity.key == ObjectKey("default", "web-default-reader")
    assert write.assigned_identity.state == AssignedState.CREATED
    assert plan(SINGLE_POD).in_use == {make.target(): {make.identity_id("reader")}}


def test_an_identity_already_on_the_target_is_assigned_in_one_write() -> None:
    """When the identity is on the target already, the object is Assigned in its first write."""
    (write,) = plan(replace(SINGLE_POD, targets={make.target(): make.state("reader")})).writes
    assert write == Create(replace(write.assigned_identity, state=AssignedState.ASSIGNED))


def test_a_created_object_becomes_assigned_when_azure_has_the_identity() -> None:
    """Once Azure has the identity, the plan changes a created object's state to Assigned and nothing else."""
    fresh_object = written(SINGLE_POD, plan(SINGLE_POD).writes)
    (write,) = plan(replace(fresh_object, targets={make.target(): make.state("reader")})).writes
    assert isinstance(write, Mark)
    assert write.assigned_identity.state == AssignedState.ASSIGNED


def test_a_service_principal_needs_nothing_of_azure() -> None:
    """Types 1 and 2 are assigned at once and put on nothing."""
    outcome = plan(make.snapshot([make.pod()], [make.identity(type=1)], [make.binding()]))
    assert [write.assigned_identity.state for write in outcome.writes] == [AssignedState.ASSIGNED]
    assert outcome.in_use == {}


def test_an_identity_of_the_broker_needs_nothing_of_azure() -> None:
    """An identity that is the broker's by annotation is assigned at once, and leaves the machine where MIC put it."""
    snapshot = make.snapshot([make.pod()], [make.identity(type=IdentityType.FEDERATED)], [make.binding()])
    there = replace(snapshot, assigned_by_mic={make.target(): frozenset({make.identity_id("reader")})})
    outcome = plan(there)
    assert [write.assigned_identity.state for write in outcome.writes] == [AssignedState.ASSIGNED]
    assert outcome.in_use == {make.target(): set()}


def test_what_azure_lost_does_not_take_assigned_away() -> None:
    """When Azure has lost an identity, its object stays Assigned and the identity stays wanted on the target."""
    current = replace(SINGLE_POD, assigned_identities=(make.assigned(),), targets={make.target(): make.state()})
    assert plan(current).writes == ()
    assert plan(current).in_use == {make.target(): {make.identity_id("reader")}}


def test_a_pod_that_is_gone_loses_its_object() -> None:
    """The object of a pod that is gone is deleted, and its identity leaves the scale set if MIC had assigned it."""
    gone = replace(
        SINGLE_POD,
        pods=(),
        assigned_identities=(make.assigned(),),
        assigned_by_mic={make.target(): frozenset({make.identity_id("reader")})},
    )
    outcome = plan(gone)
    assert outcome.writes == (Delete(make.assigned()),)
    assert outcome.in_use == {make.target(): frozenset()}


def test_a_pod_on_another_node_has_its_object_replaced() -> None:
    """The object of a re-created StatefulSet pod on another node is replaced and begins as Created."""
    moved = replace(
        SINGLE_POD,
        pods=(make.pod(node="n2"),),
        nodes={"n1": make.node(), "n2": make.node("n2")},
        assigned_identities=(make.assigned(),),
    )
    (write,) = plan(moved).writes
    assert isinstance(write, Replace)
    assert (write.assigned_identity.node, write.assigned_identity.state) == ("n2", AssignedState.CREATED)


def test_a_changed_binding_replaces_the_object_and_keeps_its_state() -> None:
    """A changed binding replaces the object but keeps its state, since the identity is on the machine already."""
    current = replace(make.assigned(), binding=make.binding(name="older"))
    (write,) = plan(replace(SINGLE_POD, assigned_identities=(current,))).writes
    assert isinstance(write, Replace)
    assert write.assigned_identity.state == AssignedState.ASSIGNED


def test_an_object_of_upstream_that_is_right_is_not_rewritten() -> None:
    """An object that differs only in resource version and finalizers is not written."""
    current = replace(make.assigned(), resource_version="9", finalizers=("x",))
    assert plan(replace(SINGLE_POD, assigned_identities=(current,))).writes == ()


def test_an_object_under_deletion_is_released() -> None:
    """An object that somebody deleted by hand and that only our finalizer holds is let go."""
    current = replace(make.assigned(), deleting=True, finalizers=(FINALIZER,))
    assert plan(replace(SINGLE_POD, assigned_identities=(current,))).writes == (Delete(current),)


def test_an_object_under_deletion_that_others_hold_is_theirs() -> None:
    """An object under deletion that a foreign finalizer holds is not written.

    It may stay for ever, so the pod gets another object.
    """
    current = replace(make.assigned(), deleting=True, finalizers=("somebody.else/holds",))
    (write,) = plan(replace(SINGLE_POD, assigned_identities=(current,))).writes
    assert isinstance(write, Create)
    assert write.assigned_identity.key != current.key


def test_a_missing_client_id_is_filled_in_from_what_arm_tells() -> None:
    """The write that makes an object Assigned fills in a missing client ID, by which the pod may then ask."""
    azure = make.identity(client_id="")
    empty = make.snapshot([make.pod()], [azure], [make.binding()])
    fresh_object = written(empty, plan(empty).writes)
    assert [item.identity.client_id for item in fresh_object.assigned_identities] == [""]
    message = replace(fresh_object, targets={make.target(): make.state("reader")})
    (write,) = plan(message).writes
    assert isinstance(write, Replace)
    assert (write.assigned_identity.identity.client_id, write.assigned_identity.state) == (
        "client-of-reader",
        AssignedState.ASSIGNED,
    )
    stable = written(message, [write])
    assert plan(stable).writes == ()
    # A new leader has not asked ARM yet: what was filled in stays.
    assert plan(replace(stable, targets={})).writes == ()


def test_filling_in_a_client_id_takes_nothing_away() -> None:
    """An object whose client ID is filled in while Azure has lost the identity stays Assigned."""
    azure = make.identity(client_id="")
    current = make.assigned(azure=azure)
    lost = replace(make.state("reader"), identities=frozenset())
    (write,) = plan(
        replace(
            SINGLE_POD, identities={azure.key: azure}, assigned_identities=(current,), targets={make.target(): lost}
        )
    ).writes
    assert (write.assigned_identity.identity.client_id, write.assigned_identity.state) == (
        "client-of-reader",
        AssignedState.ASSIGNED,
    )


def test_what_azure_knows_stands_in_the_assigned_identity() -> None:
    """The object has the client ID that Azure reports, not a wrong one of the AzureIdentity."""
    wrong = make.identity(client_id="wrong")
    snapshot = make.snapshot([make.pod()], [wrong], [make.binding()])
    (write,) = plan(replace(snapshot, targets={make.target(): make.state("reader")})).writes
    assert write.assigned_identity.identity == replace(wrong, client_id="client-of-reader")
    previous = replace(make.assigned(), identity=wrong, state=AssignedState.ASSIGNED)
    (write,) = plan(
        replace(snapshot, targets={make.target(): make.state("reader")}, assigned_identities=(previous,))
    ).writes
    assert (write.assigned_identity.identity.client_id, write.assigned_identity.state) == (
        "client-of-reader",
        AssignedState.ASSIGNED,
    )


def test_a_second_object_for_the_same_pod_and_identity_goes() -> None:
    """Each pod and identity has one object; a second one is deleted."""
    second = replace(make.assigned(), key=ObjectKey("default", "zzz"))
    assert plan(replace(SINGLE_POD, assigned_identities=(make.assigned(), second))).writes == (Delete(second),)


@pytest.mark.parametrize("pod", [replace(make.pod(), phase="Succeeded"), make.pod(node="vanished")])
def test_a_finished_or_stranded_pod_keeps_what_it_has_and_gets_nothing_new(pod: Pod) -> None:
    """A pod that has ended or whose node is gone costs no write: otherwise each run of a CronJob would cost a PATCH."""
    assert plan(replace(SINGLE_POD, pods=(pod,))).writes == ()
    current = replace(make.assigned(pod), node=pod.node)
    assert plan(replace(SINGLE_POD, pods=(pod,), assigned_identities=(current,))).writes == ()


def test_a_stranded_pod_has_no_longer_what_is_being_deleted() -> None:
    """The deletion of such a pod's object is completed.

    Otherwise the outcome would depend on whether a crash comes between the deletion and the next plan.
    """
    pod, identity = make.pod(namespace="team-a", node="lost"), make.identity(namespace="team-a")
    item = replace(make.assigned(pod, identity), deleting=True, finalizers=(FINALIZER,))
    snapshot = make.snapshot([pod], [identity], [make.binding(namespace="team-a")], [item])
    assert plan(snapshot, Policy(force_namespaced=True)).writes == (Delete(item),)


@pytest.mark.parametrize("pod", [make.pod(selector=""), make.pod(selector="other"), make.pod(node="")])
def test_a_pod_without_label_match_or_node_takes_no_part(pod: Pod) -> None:
    """A pod without the label, a matching binding or a node gets nothing written for it."""
    assert plan(replace(SINGLE_POD, pods=(pod,))).writes == ()


def test_an_empty_selector_selects_nothing() -> None:
    """A binding with an empty selector selects no pod.

    In upstream's managed mode it matched every pod without the label.
    """
    selections = matching.Selections([make.binding(selector="")], {}, force_namespaced=False)
    assert list(selections.results_for(make.pod(selector=""))) == []


def reasons(snapshot: Snapshot, policy: Policy | None = None) -> str:
    """Return all reasons of a plan."""
    return " | ".join(f"{skipped.subject}: {skipped.message}" for skipped in plan(snapshot, policy).ineffective)


def test_a_binding_without_its_identity_says_so() -> None:
    """The reason names the AzureIdentity that is missing and the namespace."""
    assert 'AzureIdentity "reader" not found in namespace default' in reasons(replace(SINGLE_POD, identities={}))


def test_a_malformed_resource_id_says_so() -> None:
    """An identity with a malformed resource ID is not assigned, and the reason is given."""
    snapshot = make.snapshot([make.pod()], [make.identity(resource_id="nonsense")], [make.binding()])
    assert 'resourceID "nonsense" is malformed' in reasons(snapshot)
    assert plan(snapshot).writes == ()


def test_namespaced_identities_serve_their_namespace_only() -> None:
    """An identity is namespaced by annotation or by flag; the object is then in the identity's namespace."""
    foreign = make.snapshot([make.pod(namespace="team-b")], [make.identity(namespaced=True)], [make.binding()])
    assert "is namespaced" in reasons(foreign)
    assert "namespaced mode is on" in reasons(foreign, make.policy(force_namespaced=True))
    own = make.snapshot(
        [make.pod(namespace="team-a")],
        [make.identity(namespace="team-a", namespaced=True)],
        [make.binding(namespace="team-a")],
    )
    assert plan(own).writes[0].assigned_identity.key.namespace == "team-a"


def test_two_identities_of_one_name_make_one_object() -> None:
    """The first in binding order wins, with a reason for the other."""
    snapshot = make.snapshot(
        [make.pod()],
        [make.identity(), make.identity(namespace="team-a")],
        [make.binding(namespace="team-a"), make.binding(), make.binding(name="second-binding")],
    )
    assert [write.assigned_identity.identity.key.namespace for write in plan(snapshot).writes] == ["default"]
    assert "has the name of default/reader" in reasons(snapshot)


def test_two_pods_whose_names_collide_get_different_objects() -> None:
    """Pod `a-b` in namespace `c` and pod `a` in `b-c` would have objects of the same name."""
    pods = [make.pod("a-b", "c"), make.pod("a", "b-c")]
    outcome = plan(make.snapshot(pods, [make.identity()], [make.binding()]))
    names = {write.assigned_identity.key.name for write in outcome.writes}
    assert len(names) == 2
    assert "a-b-c-reader" in names


def test_a_name_that_something_unreadable_has_is_taken() -> None:
    """An object that cannot be read stays, and the pod's object gets another name."""
    key = make.assigned().key
    snapshot = replace(make.snapshot([make.pod()], [make.identity()], [make.binding()]), unreadable={key: "odd"})
    (write,) = planning.plan(assigning.desired_assignments(snapshot, make.policy()), snapshot, make.policy()).writes
    assert isinstance(write, Create)
    assert write.assigned_identity.key.name.startswith(f"{key.name}-")


def test_a_name_over_the_limit_is_cut_and_hashed() -> None:
    """An object's name stays within the 253 characters that Kubernetes allows."""
    outcome = plan(make.snapshot([make.pod("p" * 250)], [make.identity()], [make.binding()]))
    assert len(outcome.writes[0].assigned_identity.key.name) <= 253


def test_an_identity_in_use_on_another_node_stays() -> None:
    """A scale set shares identities: the last pod of one node must not take it from another's."""
    nodes = {"n1": make.node(), "n2": make.node("n2")}
    snapshot = make.snapshot([make.pod("b", node="n2")], [make.identity()], [make.binding()], nodes=nodes)
    following = replace(
        snapshot,
        assigned_by_mic={make.target(): frozenset({make.identity_id("reader")})},
        assigned_identities=(make.assigned(),),
    )
    assert plan(following).in_use[make.target()] == {make.identity_id("reader")}


def test_after_a_swap_from_upstream_assigned_objects_name_what_mic_put() -> None:
    """The record of what upstream's MIC put on targets is made from its Assigned objects.

    Created ones, service principals and those of vanished nodes do not count.
    """
    objects = (
        make.assigned(),
        make.assigned(make.pod("b"), make.identity("writer"), AssignedState.CREATED),
        make.assigned(make.pod("c"), make.identity("sp", type=1)),
        make.assigned(make.pod("d", node="gone"), make.identity("lost")),
    )
    put = planning.adopted(make.snapshot(assigned_identities=objects), make.policy())
    assert put == {make.target(): {make.identity_id("reader")}}


def ids(*names: str) -> frozenset[IdentityId]:
    """Return the IDs of identities by their names."""
    return frozenset(make.identity_id(name) for name in names)


def test_only_what_mic_put_and_nothing_uses_is_removed() -> None:
    """Identities that are foreign, immutable, the cluster's own or in use stay."""
    policy = make.policy(immutable_client_ids=frozenset({"client-of-fixed"}), cluster_client_id="client-of-cluster")
    state = make.state("used", "idle", "fixed", "cluster", "foreign")
    change = drift.change(ids("used", "new"), ids("used", "idle", "fixed", "cluster", "lost"), state, policy)
    assert change == TargetChange(assign=(make.identity_id("new"),), unassign=(make.identity_id("idle"),))
    assert change
    assert not drift.change(ids("used"), ids(), state, policy)


def test_a_target_that_is_gone_is_left_alone() -> None:
    """A scale set under deletion gets no PATCH."""
    assert not drift.change(ids("a"), ids("b"), ArmState(is_gone=True), make.policy())


def test_a_patch_has_at_most_150_identities_and_additions_come_first() -> None:
    """ARM refuses a PATCH with more; additions come first because pods wait for them."""
    many = tuple(sorted(ids(*(f"i{number:03}" for number in range(200)))))
    assert drift.first_patch(TargetChange(many, many), separate_removals=False) == TargetChange(many[:150])
    assert drift.first_patch(TargetChange((), many), separate_removals=False) == TargetChange((), many[:150])


def test_removals_ride_along_when_there_is_room() -> None:
    """Additions and removals share a PATCH, unless a PATCH with both was refused."""
    change = TargetChange((make.identity_id("new"),), (make.identity_id("old"),))
    assert drift.first_patch(change, separate_removals=False) == change
    assert drift.first_patch(change, separate_removals=True) == TargetChange(change.assign)


def test_the_clusters_own_identity_may_be_named_by_its_resource_id() -> None:
    """The cluster's own identity is never removed, also where azure.json names it by resource ID."""
    policy = make.policy(cluster_client_id=make.resource_id("own").lower())
    state = ArmState(ids("own", "idle"))
    assert drift.change(ids(), ids("own", "idle"), state, policy) == TargetChange(unassign=(make.identity_id("idle"),))


NAMES = st.sampled_from(["a", "b", "c"])
NAMESPACES = st.sampled_from(["default", "team-a"])


@st.composite
def leaving(draw: st.DrawFn, item: AzureAssignedIdentity) -> AzureAssignedIdentity:
    """Draw who still holds a stored object, and whether it is under deletion."""
    finalizers = draw(st.sampled_from([(FINALIZER,), (FINALIZER, "others/hold"), ("others/hold",)]))
    return replace(item, finalizers=finalizers, deleting=draw(st.booleans()))


FEWER = settings(max_examples=60)
"""A snapshot is dear to draw; these run with every check."""

POLICIES = st.builds(
    make.policy,
    force_namespaced=st.booleans(),
    assign_on_binding=st.booleans(),
    allow_list=st.booleans(),
    immutable_client_ids=st.sampled_from([frozenset(), frozenset({"client-of-a"})]),
    cluster_client_id=st.sampled_from(["", "client-of-b"]),
)


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    """Draw small clusters in which names collide often."""
    nodes = {"n1": make.node("n1", "ss1"), "n2": make.node("n2", "ss1"), "n3": make.node("n3", "")}
    pods = {
        pod.key: pod
        for pod in draw(
            st.lists(
                st.builds(
                    make.pod, NAMES, NAMESPACES, node=st.sampled_from(["n1", "n2", "n3", "lost", ""]), selector=NAMES
                )
            )
        )
    }
    identities = draw(
        st.lists(
            st.builds(
                make.identity,
                NAMES,
                NAMESPACES,
                type=st.sampled_from([0, 0, 1]),
                namespaced=st.booleans(),
                client_id=st.sampled_from(["", "given"]),
            )
        )
    )
    bindings = {
        item.key: item
        for item in draw(st.lists(st.builds(make.binding, NAMES, NAMESPACES, azure_identity=NAMES, selector=NAMES)))
    }
    assigned: list[AzureAssignedIdentity] = draw(
        st.lists(
            st.builds(
                make.assigned,
                st.builds(make.pod, NAMES, NAMESPACES, node=st.sampled_from(["n1", "n2"]), selector=NAMES),
                st.builds(make.identity, NAMES, NAMESPACES),
                st.sampled_from(AssignedState),
            )
        )
    )
    current = {item.key: draw(leaving(item)) for item in assigned}
    snapshot = make.snapshot(pods.values(), identities, bindings.values(), current.values(), nodes)
    names = draw(st.lists(NAMES))
    put: Mapping[Target, frozenset[IdentityId]] = {make.target("ss1"): ids(*draw(st.lists(NAMES)))}
    return replace(snapshot, targets={make.target("ss1"): make.state(*names)}, assigned_by_mic=put)


@given(snapshots(), POLICIES)
@FEWER
def test_planning_after_applying_is_empty(snapshot: Snapshot, policy: Policy) -> None:
    """When everything is done, the next plan is empty.

    That may take several rounds, since the first may free a name.
    """
    stable = applied(applied(applied(snapshot, policy), policy), policy)
    assert plan(stable, policy).writes == ()
    for target, in_use in plan(stable, policy).in_use.items():
        assert not drift.change(in_use, stable.assigned_by_mic.get(target, frozenset()), stable.targets[target], policy)


def statements(snapshot: Snapshot) -> set[tuple[object, ...]]:
    """Return what the stored objects say, without their names."""
    return {
        (item.assignment_key, item.node, item.identity, item.binding, item.state)
        for item in snapshot.assigned_identities
    }


@given(snapshots(), POLICIES, st.data())
@FEWER
def test_a_plan_cut_anywhere_and_planned_again_converges(
    snapshot: Snapshot, policy: Policy, data: st.DataObject
) -> None:
    """A crash between any two writes costs time, never correctness."""
    writes = plan(snapshot, policy).writes
    limited = written(snapshot, writes[: data.draw(st.integers(0, len(writes)))])
    through = applied(applied(applied(limited, policy), policy), policy)
    straight = applied(applied(applied(snapshot, policy), policy), policy)
    assert statements(through) == statements(straight)
    assert through.targets == straight.targets


@given(snapshots())
@FEWER
def test_the_order_of_input_does_not_matter(snapshot: Snapshot) -> None:
    """The plan is the same in whatever order the API server lists the objects."""
    shuffled = replace(
        snapshot,
        pods=tuple(reversed(snapshot.pods)),
        bindings=tuple(reversed(snapshot.bindings)),
        assigned_identities=tuple(reversed(snapshot.assigned_identities)),
        identities=dict(reversed(list(snapshot.identities.items()))),
    )
    assert set(plan(snapshot).writes) == set(plan(shuffled).writes)
    assert plan(snapshot).in_use == plan(shuffled).in_use


@given(snapshots(), POLICIES)
@FEWER
def test_no_plan_takes_anything_that_a_pod_needs_or_that_is_not_mics(snapshot: Snapshot, policy: Policy) -> None:
    """From a snapshot to a PATCH, no identity leaves that is in use, immutable, the cluster's own, or foreign."""
    outcome = plan(snapshot, policy)
    required = {
        (policy.target_of(snapshot.nodes[item.node]), item.identity.arm_id)
        for item in assigning.desired_assignments(snapshot, policy).assignments.values()
        if item.node in snapshot.nodes
    }
    for target, in_use in outcome.in_use.items():
        state, put = snapshot.targets.get(target, ArmState()), snapshot.assigned_by_mic.get(target, frozenset())
        for item in drift.change(in_use, put, state, policy).unassign:
            assert (target, item) not in required
            assert item in put
            assert dict(state.client_ids).get(item) not in policy.immutable_client_ids | {policy.cluster_client_id}


def of_pods(snapshot: Snapshot, keys: frozenset[ObjectKey]) -> Snapshot:
    """Return the part of a snapshot that MIC plans for when only these pods changed (`mic.adapters.cluster`)."""
    pods = tuple(item for item in snapshot.pods if item.key in keys)
    nodes = {item.node: snapshot.nodes[item.node] for item in pods if item.node in snapshot.nodes}
    assigned = tuple(item for item in snapshot.assigned_identities if item.pod in keys)
    return replace(snapshot, pods=pods, nodes=nodes, assigned_identities=assigned, assigned_by_mic={})


@given(snapshots(), POLICIES, st.data())
@FEWER
def test_planning_for_some_pods_first_leads_to_the_same(
    snapshot: Snapshot, policy: Policy, data: st.DataObject
) -> None:
    """A plan for some pods writes for those alone.

    A plan for all pods afterwards ends as if the first had not been made.
    """
    everyone = sorted({item.key for item in snapshot.pods} | {item.pod for item in snapshot.assigned_identities})
    some = frozenset(data.draw(st.lists(st.sampled_from(everyone)))) if everyone else frozenset()
    outcome = plan(of_pods(snapshot, some), replace(policy, assign_on_binding=False))
    assert {write.assigned_identity.pod for write in outcome.writes} <= some
    for target, in_use in outcome.in_use.items():
        assert in_use <= plan(snapshot, policy).in_use[target]
    names = {
        item.key for item in snapshot.assigned_identities
    }  # another pod's object may have the name: then it is a conflict
    free = [
        write for write in outcome.writes if not (isinstance(write, Create) and write.assigned_identity.key in names)
    ]
    through = applied(applied(applied(written(snapshot, free), policy), policy), policy)
    straight = applied(applied(applied(snapshot, policy), policy), policy)
    assert statements(through) == statements(straight)
    assert through.targets == straight.targets


@given(snapshots(), POLICIES)
@FEWER
def test_no_two_writes_are_about_one_object(snapshot: Snapshot, policy: Policy) -> None:
    """Each write of a plan is about another object, so that writes may be under way at once, in any order."""
    keys = [write.assigned_identity.key for write in plan(snapshot, policy).writes]
    assert len(keys) == len(set(keys))


@given(st.frozensets(NAMES), st.frozensets(NAMES), st.frozensets(NAMES), st.frozensets(NAMES))
def test_no_identity_in_use_immutable_or_foreign_is_ever_removed(
    used: frozenset[str], put: frozenset[str], there: frozenset[str], fixed: frozenset[str]
) -> None:
    """An identity is removed exactly if MIC put it there, nothing uses it, and it is not immutable."""
    policy = make.policy(immutable_client_ids=frozenset(f"client-of-{name}" for name in fixed))
    removed = drift.change(ids(*used), ids(*put), make.state(*there), policy).unassign
    assert set(removed) == ids(*((put & there) - used - fixed))


def test_a_bindings_mistake_is_told_once_however_many_pods() -> None:
    """A broken binding is reported once, for the first pod, though thousands may carry the label that it selects."""
    pods = [make.pod(f"p{number}") for number in range(50)]
    bindings = [make.binding("broken", namespace="elsewhere", azure_identity="none", selector="reader")]
    found = assigning.desired_assignments(make.snapshot(pods=pods, bindings=bindings), make.policy())
    assert [skipped.pod.name for skipped in found.ineffective] == ["p0"]


# Bounds for each tenant.


def many(count: int, namespace: str = "default") -> tuple[list[AzureIdentity], list[AzureIdentityBinding]]:
    """Return `count` identities of a namespace, each with a binding for the usual label."""
    names = [f"i{number:04}" for number in range(count)]
    identities = [make.identity(name, namespace) for name in names]
    return identities, [make.binding(name, namespace, name, "reader") for name in names]


def test_a_pod_has_a_bounded_number_of_identities() -> None:
    """The first ones count; each binding beyond says why it gives nothing, once, however many pods there are."""
    identities, bindings = many(assigning.IDENTITIES_PER_POD + 3)
    pods = [make.pod(f"p{number}") for number in range(5)]
    result = plan(make.snapshot(pods, identities, bindings))
    assert len(result.writes) == len(pods) * assigning.IDENTITIES_PER_POD
    assert [(skipped.binding.name, skipped.code) for skipped in result.ineffective] == [
        (f"i{assigning.IDENTITIES_PER_POD + number:04}", "TooManyIdentities") for number in range(3)
    ]


def test_identities_of_other_namespaces_do_not_use_up_a_pods_own() -> None:
    """However many bindings of other namespaces select a pod's label, those of its own namespace come first."""
    identities, bindings = many(assigning.IDENTITIES_PER_POD, "a-team")
    own, binding = make.identity("own"), make.binding("zzz", "default", "own", "reader")
    result = plan(make.snapshot([make.pod()], [*identities, own], [*bindings, binding]))
    assert own.key in {write.assigned_identity.identity.key for write in result.writes}


def test_another_namespaces_identity_of_the_same_name_does_not_take_its_place() -> None:
    """When identities of two namespaces have one name, the pod gets that of its own, though the other sorts first."""
    foreign, own = make.identity("db", "a-team"), make.identity("db")
    bindings = [make.binding("aaa", "a-team", "db", "reader"), make.binding("db", "default", "db", "reader")]
    result = plan(make.snapshot([make.pod()], [foreign, own], bindings))
    assert [write.assigned_identity.identity.key for write in result.writes] == [own.key]
    assert [(skipped.binding.namespace, skipped.code) for skipped in result.ineffective] == [("a-team", "NameTaken")]


def test_a_namespaces_pods_have_a_bounded_number_of_assigned_identities(monkeypatch: pytest.MonkeyPatch) -> None:
    """What exists stays; of the others the first pods by name are served, and planning again changes nothing."""
    monkeypatch.setattr(assigning, "ASSIGNMENTS_PER_NAMESPACE", 3)
    pods = [make.pod(f"p{number}") for number in range(5)]
    elsewhere = make.pod("other", "team-b", selector="reader")
    snapshot = make.snapshot([*pods, elsewhere], [make.identity()], [make.binding()])
    last = make.assigned(pods[4])
    result = plan(replace(snapshot, assigned_identities=(last,)))
    answers = {write.assigned_identity.pod.name for write in result.writes if isinstance(write, Create)}
    assert answers == {"p0", "p1", "other"}
    assert {(skipped.code, skipped.pod.name) for skipped in result.ineffective} == {("NamespaceFull", "p2")}
    following = applied(applied(replace(snapshot, assigned_identities=(last,)), make.policy()), make.policy())
    assert plan(following).writes == ()
    assert assigning.desired_assignments(following, make.policy()).full == {"default"}


def test_namespaces_take_turns_in_a_plan() -> None:
    """A single pod of one namespace does not wait for the writes of another namespace's thousands of pods."""
    pods = [*(make.pod(f"p{number}", "a-team", selector="reader") for number in range(100)), make.pod("late", "z-team")]
    writes = plan(make.snapshot(pods, [make.identity()], [make.binding()])).writes
    assert [write.assigned_identity.pod.name for write in writes].index("late") <= 1


def test_a_newer_plan_takes_the_place_of_an_older_one_for_its_pods_alone() -> None:
    """What an older plan still has to write for other pods stays, in turn with the newer writes, deletions first."""
    pods = [make.pod(name, "a-team", selector="reader") for name in ("old", "gone", "other")]
    identities, bindings = [make.identity()], [make.binding()]
    older = plan(make.snapshot(pods, identities, bindings)).writes
    assigned_identities = [write.assigned_identity for write in older if write.assigned_identity.pod.name == "old"]
    newer = plan(
        make.snapshot([make.pod("late", "z-team", selector="reader")], identities, bindings, assigned_identities)
    )
    writes = steps.finish(planning.with_newer(older, newer, {pods[0].key, pods[1].key}))
    assert [(type(write), write.assigned_identity.pod.name) for write in writes] == [
        (Delete, "old"),
        (Create, "late"),
        (Create, "other"),
    ]
    again = steps.finish(planning.with_newer(writes, planning.Plan(tuple(writes[:1])), set()))
    assert sorted(write.assigned_identity.pod.name for write in again) == ["late", "old", "other"]
