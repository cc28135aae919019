"""What should exist, and what to do about it: examples first, then what must always hold."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import make
from podidentity.core import assigning, drift, matching, planning, warming
from podidentity.core.arm import IdentityId, Target, TargetState
from podidentity.core.assigning import Policy
from podidentity.core.cluster import Pod, Snapshot
from podidentity.core.crd import FINALIZER
from podidentity.core.drift import Change
from podidentity.core.identities import AssignedState, AzureAssignedIdentity, ObjectKey
from podidentity.core.planning import Create, Delete, Mark, Plan, Replace, Write


def plan(snapshot: Snapshot, policy: Policy | None = None) -> Plan:
    """Plan a snapshot."""
    given_policy = policy or make.policy()
    return planning.plan(assigning.wanted(snapshot, given_policy), snapshot, given_policy)


def written(snapshot: Snapshot, writes: Iterable[Write]) -> Snapshot:
    """Carry out writes, as a Kubernetes API would."""
    stored = {one.key: one for one in snapshot.assigned}
    for write in writes:
        if isinstance(write, Delete):
            held = tuple(name for name in write.assigned.finalizers if name != FINALIZER)
            gone = stored.pop(write.assigned.key)
            if held:
                stored[gone.key] = replace(gone, finalizers=held, deleting=True)
        else:
            assert (write.assigned.key in stored) == (not isinstance(write, Create))
            stored[write.assigned.key] = write.assigned
    return replace(snapshot, assigned=tuple(stored.values()))


def applied(snapshot: Snapshot, policy: Policy) -> Snapshot:
    """Carry out everything a plan asks for, Azure included."""
    made = plan(snapshot, policy)
    targets, put = dict(snapshot.targets), dict(snapshot.put)
    for target, in_use in made.in_use.items():
        state = targets.get(target, TargetState())
        change = drift.change(in_use, put.get(target, frozenset()), state, policy)
        targets[target] = replace(state, identities=(state.identities | {*change.assign}) - {*change.unassign})
        put[target] = (put.get(target, frozenset()) | {*change.assign}) - {*change.unassign}
    return replace(written(snapshot, made.writes), targets=targets, put=put)


ONE = make.snapshot([make.pod()], [make.identity()], [make.binding()])


def test_a_matching_pod_gets_a_created_object() -> None:
    """Created until Azure has it; upstream's name, namespace and finalizer."""
    (write,) = plan(ONE).writes
    assert isinstance(write, Create)
    assert write.assigned.key == ObjectKey("default", "web-default-reader")
    assert write.assigned.state == AssignedState.CREATED
    assert plan(ONE).in_use == {make.target(): {make.identity_id("reader")}}


def test_an_identity_already_on_the_target_is_assigned_in_one_write() -> None:
    """No ARM call, no second write."""
    (write,) = plan(replace(ONE, targets={make.target(): make.state("reader")})).writes
    assert write == Create(replace(write.assigned, state=AssignedState.ASSIGNED))


def test_a_created_object_becomes_assigned_when_azure_has_the_identity() -> None:
    """The only thing left is its state."""
    created = written(ONE, plan(ONE).writes)
    (write,) = plan(replace(created, targets={make.target(): make.state("reader")})).writes
    assert isinstance(write, Mark)
    assert write.assigned.state == AssignedState.ASSIGNED


def test_a_service_principal_needs_nothing_of_azure() -> None:
    """Types 1 and 2 are assigned at once and put on nothing."""
    made = plan(make.snapshot([make.pod()], [make.identity(type=1)], [make.binding()]))
    assert [write.assigned.state for write in made.writes] == [AssignedState.ASSIGNED]
    assert made.in_use == {}


def test_what_azure_lost_does_not_take_assigned_away() -> None:
    """Drift puts it back; the pod keeps asking meanwhile."""
    stored = replace(ONE, assigned=(make.assigned(),), targets={make.target(): make.state()})
    assert plan(stored).writes == ()
    assert plan(stored).in_use == {make.target(): {make.identity_id("reader")}}


def test_a_pod_that_is_gone_loses_its_object() -> None:
    """And its identity leaves the scale set when MIC had put it there."""
    gone = replace(
        ONE, pods=(), assigned=(make.assigned(),), put={make.target(): frozenset({make.identity_id("reader")})}
    )
    made = plan(gone)
    assert made.writes == (Delete(make.assigned()),)
    assert made.in_use == {make.target(): frozenset()}


def test_a_pod_on_another_node_has_its_object_replaced() -> None:
    """A re-created StatefulSet pod keeps its name and moves."""
    moved = replace(
        ONE, pods=(make.pod(node="n2"),), nodes={"n1": make.node(), "n2": make.node("n2")}, assigned=(make.assigned(),)
    )
    (write,) = plan(moved).writes
    assert isinstance(write, Replace)
    assert (write.assigned.node, write.assigned.state) == ("n2", AssignedState.CREATED)


def test_a_changed_binding_replaces_the_object_and_keeps_its_state() -> None:
    """The identity is where it was."""
    stored = replace(make.assigned(), binding=make.binding(name="older"))
    (write,) = plan(replace(ONE, assigned=(stored,))).writes
    assert isinstance(write, Replace)
    assert write.assigned.state == AssignedState.ASSIGNED


def test_an_object_of_upstream_that_is_right_is_not_rewritten() -> None:
    """Resource version and finalizers do not count."""
    stored = replace(make.assigned(), resource_version="9", finalizers=("x",))
    assert plan(replace(ONE, assigned=(stored,))).writes == ()


def test_an_object_under_deletion_is_released() -> None:
    """Somebody deleted it by hand: let it go; the next plan makes a new one."""
    stored = replace(make.assigned(), deleting=True, finalizers=(FINALIZER,))
    assert plan(replace(ONE, assigned=(stored,))).writes == (Delete(stored),)


def test_an_object_under_deletion_that_others_hold_is_theirs() -> None:
    """It may stay for ever: the pod gets another object, and nothing is written to this one."""
    stored = replace(make.assigned(), deleting=True, finalizers=("somebody.else/holds",))
    (write,) = plan(replace(ONE, assigned=(stored,))).writes
    assert isinstance(write, Create)
    assert write.assigned.key != stored.key


def test_a_missing_client_id_is_filled_in_from_what_arm_tells() -> None:
    """With the write that makes it Assigned; a pod may then ask by client ID."""
    azure = make.identity(client_id="")
    empty = make.snapshot([make.pod()], [azure], [make.binding()])
    created = written(empty, plan(empty).writes)
    assert [one.identity.client_id for one in created.assigned] == [""]
    told = replace(created, targets={make.target(): make.state("reader")})
    (write,) = plan(told).writes
    assert isinstance(write, Replace)
    assert (write.assigned.identity.client_id, write.assigned.state) == ("client-of-reader", AssignedState.ASSIGNED)
    settled = written(told, [write])
    assert plan(settled).writes == ()
    # A new leader has not asked ARM yet: what was filled in stays.
    assert plan(replace(settled, targets={})).writes == ()


def test_filling_in_a_client_id_takes_nothing_away() -> None:
    """An identity that Azure has lost for the moment stays Assigned."""
    azure = make.identity(client_id="")
    stored = make.assigned(azure=azure)
    lost = replace(make.state("reader"), identities=frozenset())
    (write,) = plan(
        replace(ONE, identities={azure.key: azure}, assigned=(stored,), targets={make.target(): lost})
    ).writes
    assert (write.assigned.identity.client_id, write.assigned.state) == ("client-of-reader", AssignedState.ASSIGNED)


def test_a_given_client_id_is_never_replaced() -> None:
    """A wrong one is told to the user, not corrected behind his back."""
    wrong = make.identity(client_id="wrong")
    snapshot = make.snapshot([make.pod()], [wrong], [make.binding()])
    (write,) = plan(replace(snapshot, targets={make.target(): make.state("reader")})).writes
    assert write.assigned.identity == wrong


def test_a_second_object_for_the_same_pod_and_identity_goes() -> None:
    """One statement for each pod and identity."""
    second = replace(make.assigned(), key=ObjectKey("default", "zzz"))
    assert plan(replace(ONE, assigned=(make.assigned(), second))).writes == (Delete(second),)


@pytest.mark.parametrize("pod", [replace(make.pod(), phase="Succeeded"), make.pod(node="vanished")])
def test_a_finished_or_stranded_pod_keeps_what_it_has_and_gets_nothing_new(pod: Pod) -> None:
    """A CronJob must not cost a PATCH with every run."""
    assert plan(replace(ONE, pods=(pod,))).writes == ()
    stored = replace(make.assigned(pod), node=pod.node)
    assert plan(replace(ONE, pods=(pod,), assigned=(stored,))).writes == ()


@pytest.mark.parametrize("pod", [make.pod(selector=""), make.pod(selector="other"), make.pod(node="")])
def test_a_pod_without_label_match_or_node_takes_no_part(pod: Pod) -> None:
    """Nothing is written for it."""
    assert plan(replace(ONE, pods=(pod,))).writes == ()


def test_an_empty_selector_selects_nothing() -> None:
    """Upstream's managed mode matched every pod without the label."""
    selections = matching.Selections([make.binding(selector="")], {}, force_namespaced=False)
    assert list(selections.of(make.pod(selector=""))) == []


def reasons(snapshot: Snapshot, policy: Policy | None = None) -> str:
    """All reasons of a plan."""
    return " | ".join(f"{skipped.about}: {skipped.why}" for skipped in plan(snapshot, policy).skipped)


def test_a_binding_without_its_identity_says_so() -> None:
    """The sentence names both and what to do."""
    assert 'AzureIdentity "reader" not found in namespace default' in reasons(replace(ONE, identities={}))


def test_a_malformed_resource_id_says_so() -> None:
    """And nothing is assigned."""
    snapshot = make.snapshot([make.pod()], [make.identity(resource_id="nonsense")], [make.binding()])
    assert 'resourceID "nonsense" is malformed' in reasons(snapshot)
    assert plan(snapshot).writes == ()


def test_namespaced_identities_serve_their_namespace_only() -> None:
    """By annotation or by flag; the object then lives with the identity."""
    foreign = make.snapshot([make.pod(namespace="team-b")], [make.identity(namespaced=True)], [make.binding()])
    assert "is namespaced" in reasons(foreign)
    assert "namespaced mode is on" in reasons(foreign, make.policy(force_namespaced=True))
    own = make.snapshot(
        [make.pod(namespace="team-a")],
        [make.identity(namespace="team-a", namespaced=True)],
        [make.binding(namespace="team-a")],
    )
    assert plan(own).writes[0].assigned.key.namespace == "team-a"


def test_two_identities_of_one_name_make_one_object() -> None:
    """The first in binding order wins, with a reason for the other."""
    snapshot = make.snapshot(
        [make.pod()],
        [make.identity(), make.identity(namespace="team-a")],
        [make.binding(namespace="team-a"), make.binding(), make.binding(name="second-binding")],
    )
    assert [write.assigned.identity.key.namespace for write in plan(snapshot).writes] == ["default"]
    assert "has the name of default/reader" in reasons(snapshot)


def test_two_pods_whose_names_collide_get_different_objects() -> None:
    """Pod `a-b` in `c` and pod `a` in `b-c`."""
    pods = [make.pod("a-b", "c"), make.pod("a", "b-c")]
    made = plan(make.snapshot(pods, [make.identity()], [make.binding()]))
    names = {write.assigned.key.name for write in made.writes}
    assert len(names) == 2
    assert "a-b-c-reader" in names


def test_a_name_that_something_unreadable_has_is_taken() -> None:
    """Nobody knows what it is: it stays, and the pod has an object of another name."""
    key = make.assigned().key
    snapshot = replace(make.snapshot([make.pod()], [make.identity()], [make.binding()]), unreadable={key: "odd"})
    (write,) = planning.plan(assigning.wanted(snapshot, make.policy()), snapshot, make.policy()).writes
    assert isinstance(write, Create)
    assert write.assigned.key.name.startswith(f"{key.name}-")


def test_a_name_over_the_limit_is_cut_and_hashed() -> None:
    """Kubernetes takes 253 characters."""
    made = plan(make.snapshot([make.pod("p" * 250)], [make.identity()], [make.binding()]))
    assert len(made.writes[0].assigned.key.name) <= 253


def test_an_identity_in_use_on_another_node_stays() -> None:
    """A scale set shares identities: the last pod of one node must not take it from another's."""
    nodes = {"n1": make.node(), "n2": make.node("n2")}
    snapshot = make.snapshot([make.pod("b", node="n2")], [make.identity()], [make.binding()], nodes=nodes)
    after = replace(snapshot, put={make.target(): frozenset({make.identity_id("reader")})}, assigned=(make.assigned(),))
    assert plan(after).in_use[make.target()] == {make.identity_id("reader")}


def test_after_a_swap_from_upstream_assigned_objects_name_what_mic_put() -> None:
    """Created ones, service principals and vanished nodes do not."""
    objects = (
        make.assigned(),
        make.assigned(make.pod("b"), make.identity("writer"), AssignedState.CREATED),
        make.assigned(make.pod("c"), make.identity("sp", type=1)),
        make.assigned(make.pod("d", node="gone"), make.identity("lost")),
    )
    put = planning.taken_over(make.snapshot(assigned=objects), make.policy())
    assert put == {make.target(): {make.identity_id("reader")}}


def ids(*names: str) -> frozenset[IdentityId]:
    """Name identities."""
    return frozenset(make.identity_id(name) for name in names)


def test_only_what_mic_put_and_nothing_uses_is_removed() -> None:
    """Foreign, immutable, cluster and used identities stay."""
    policy = make.policy(immutable_client_ids=frozenset({"client-of-fixed"}), cluster_client_id="client-of-cluster")
    state = make.state("used", "idle", "fixed", "cluster", "foreign")
    change = drift.change(ids("used", "new"), ids("used", "idle", "fixed", "cluster", "lost"), state, policy)
    assert change == Change(assign=(make.identity_id("new"),), unassign=(make.identity_id("idle"),))
    assert change
    assert not drift.change(ids("used"), ids(), state, policy)


def test_a_target_that_is_gone_is_left_alone() -> None:
    """A scale set under deletion gets no PATCH."""
    assert not drift.change(ids("a"), ids("b"), TargetState(gone=True), make.policy())


def test_a_patch_has_at_most_150_identities_and_additions_come_first() -> None:
    """ARM refuses more; a pod waits for additions."""
    many = tuple(sorted(ids(*(f"i{number:03}" for number in range(200)))))
    assert drift.first_patch(Change(many, many), apart=False) == Change(many[:150])
    assert drift.first_patch(Change((), many), apart=False) == Change((), many[:150])


def test_removals_ride_along_when_there_is_room() -> None:
    """One PATCH for a burst; apart when one of the two was refused."""
    change = Change((make.identity_id("new"),), (make.identity_id("old"),))
    assert drift.first_patch(change, apart=False) == change
    assert drift.first_patch(change, apart=True) == Change(change.assign)


def test_the_clusters_own_identity_may_be_named_by_its_resource_id() -> None:
    """As newer azure.json files do; ARM need not tell a client ID for that."""
    policy = make.policy(cluster_client_id=make.resource_id("own").lower())
    state = TargetState(ids("own", "idle"))
    assert drift.change(ids(), ids("own", "idle"), state, policy) == Change(unassign=(make.identity_id("idle"),))


NAMES = st.sampled_from(["a", "b", "c"])
NAMESPACES = st.sampled_from(["default", "team-a"])


@st.composite
def leaving(draw: st.DrawFn, one: AzureAssignedIdentity) -> AzureAssignedIdentity:
    """Draw who still holds a stored object, and whether it is under deletion."""
    finalizers = draw(st.sampled_from([(FINALIZER,), (FINALIZER, "others/hold"), ("others/hold",)]))
    return replace(one, finalizers=finalizers, deleting=draw(st.booleans()))


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
        one.key: one
        for one in draw(st.lists(st.builds(make.binding, NAMES, NAMESPACES, azure_identity=NAMES, selector=NAMES)))
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
    stored = {one.key: draw(leaving(one)) for one in assigned}
    snapshot = make.snapshot(pods.values(), identities, bindings.values(), stored.values(), nodes)
    names = draw(st.lists(NAMES))
    put: Mapping[Target, frozenset[IdentityId]] = {make.target("ss1"): ids(*draw(st.lists(NAMES)))}
    return replace(snapshot, targets={make.target("ss1"): make.state(*names)}, put=put)


@given(snapshots(), POLICIES)
@FEWER
def test_planning_after_applying_is_empty(snapshot: Snapshot, policy: Policy) -> None:
    """Nothing is left to do once everything was done (several rounds: a name may be freed by the first)."""
    settled = applied(applied(applied(snapshot, policy), policy), policy)
    assert plan(settled, policy).writes == ()
    for target, in_use in plan(settled, policy).in_use.items():
        assert not drift.change(in_use, settled.put.get(target, frozenset()), settled.targets[target], policy)


def statements(snapshot: Snapshot) -> set[tuple[object, ...]]:
    """What the stored objects say, without their names."""
    return {(one.about, one.node, one.identity, one.binding, one.state) for one in snapshot.assigned}


@given(snapshots(), POLICIES, st.data())
@FEWER
def test_a_plan_cut_anywhere_and_planned_again_converges(
    snapshot: Snapshot, policy: Policy, data: st.DataObject
) -> None:
    """A crash between any two writes costs time, never correctness."""
    writes = plan(snapshot, policy).writes
    cut = written(snapshot, writes[: data.draw(st.integers(0, len(writes)))])
    through = applied(applied(applied(cut, policy), policy), policy)
    straight = applied(applied(applied(snapshot, policy), policy), policy)
    assert statements(through) == statements(straight)
    assert through.targets == straight.targets


@given(snapshots())
@FEWER
def test_the_order_of_input_does_not_matter(snapshot: Snapshot) -> None:
    """Lists come in any order from the API."""
    shuffled = replace(
        snapshot,
        pods=tuple(reversed(snapshot.pods)),
        bindings=tuple(reversed(snapshot.bindings)),
        assigned=tuple(reversed(snapshot.assigned)),
        identities=dict(reversed(list(snapshot.identities.items()))),
    )
    assert set(plan(snapshot).writes) == set(plan(shuffled).writes)
    assert plan(snapshot).in_use == plan(shuffled).in_use


@given(snapshots(), POLICIES)
@FEWER
def test_no_plan_takes_anything_that_a_pod_needs_or_that_is_not_mics(snapshot: Snapshot, policy: Policy) -> None:
    """Of the whole way from a snapshot to a PATCH: nothing in use, immutable, the cluster's own, or foreign leaves."""
    made = plan(snapshot, policy)
    needed = {
        (warming.target_of(snapshot.nodes[one.node], policy), one.identity.arm_id)
        for one in assigning.wanted(snapshot, policy).assignments.values()
        if one.node in snapshot.nodes
    }
    for target, in_use in made.in_use.items():
        state, put = snapshot.targets.get(target, TargetState()), snapshot.put.get(target, frozenset())
        for one in drift.change(in_use, put, state, policy).unassign:
            assert (target, one) not in needed
            assert one in put
            assert dict(state.client_ids).get(one) not in policy.immutable_client_ids | {policy.cluster_client_id}


def of_pods(snapshot: Snapshot, keys: frozenset[ObjectKey]) -> Snapshot:
    """What MIC looks at when only these pods changed (`mic.cluster`, close_up)."""
    pods = tuple(one for one in snapshot.pods if one.key in keys)
    nodes = {one.node: snapshot.nodes[one.node] for one in pods if one.node in snapshot.nodes}
    assigned = tuple(one for one in snapshot.assigned if one.pod in keys)
    return replace(snapshot, pods=pods, nodes=nodes, assigned=assigned, put={})


@given(snapshots(), POLICIES, st.data())
@FEWER
def test_planning_for_some_pods_first_leads_to_the_same(
    snapshot: Snapshot, policy: Policy, data: st.DataObject
) -> None:
    """It takes nothing from anybody else, and what a plan for everything makes of the rest is no other."""
    everyone = sorted({one.key for one in snapshot.pods} | {one.pod for one in snapshot.assigned})
    some = frozenset(data.draw(st.lists(st.sampled_from(everyone)))) if everyone else frozenset()
    made = plan(of_pods(snapshot, some), replace(policy, assign_on_binding=False))
    assert {write.assigned.pod for write in made.writes} <= some
    for target, in_use in made.in_use.items():
        assert in_use <= plan(snapshot, policy).in_use[target]
    names = {one.key for one in snapshot.assigned}  # another pod's object may have the name: then it is a conflict
    free = [write for write in made.writes if not (isinstance(write, Create) and write.assigned.key in names)]
    through = applied(applied(applied(written(snapshot, free), policy), policy), policy)
    straight = applied(applied(applied(snapshot, policy), policy), policy)
    assert statements(through) == statements(straight)
    assert through.targets == straight.targets


@given(snapshots(), POLICIES)
@FEWER
def test_no_two_writes_are_about_one_object(snapshot: Snapshot, policy: Policy) -> None:
    """They may therefore be under way at the same time, in any order."""
    keys = [write.assigned.key for write in plan(snapshot, policy).writes]
    assert len(keys) == len(set(keys))


@given(st.frozensets(NAMES), st.frozensets(NAMES), st.frozensets(NAMES), st.frozensets(NAMES))
def test_no_identity_in_use_immutable_or_foreign_is_ever_removed(
    used: frozenset[str], put: frozenset[str], there: frozenset[str], fixed: frozenset[str]
) -> None:
    """Whatever the state, removal needs: put by MIC, unused, not immutable."""
    policy = make.policy(immutable_client_ids=frozenset(f"client-of-{name}" for name in fixed))
    removed = drift.change(ids(*used), ids(*put), make.state(*there), policy).unassign
    assert set(removed) == ids(*((put & there) - used - fixed))


def test_a_bindings_mistake_is_told_once_however_many_pods() -> None:
    """Thousands of pods may carry a label that a broken binding of another namespace selects."""
    pods = [make.pod(f"p{number}") for number in range(50)]
    bindings = [make.binding("broken", namespace="elsewhere", azure_identity="none", selector="reader")]
    found = assigning.wanted(make.snapshot(pods=pods, bindings=bindings), make.policy())
    assert [skipped.pod.name for skipped in found.skipped] == ["p0"]
