"""Identities on targets without a pod: before the first one, and after the last."""

from collections.abc import Iterable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import make
from podidentity.core.assignment import assigning, idle_identities, planning
from podidentity.core.assignment.idle_identities import InUse
from podidentity.core.model import steps
from podidentity.core.model.arm import IdentityId
from podidentity.core.model.identities import AssignedState
from podidentity.core.model.label_selector import BadSelector, LabelSelector, parse_selector
from podidentity.core.model.policy import Policy
from podidentity.core.model.snapshot import Snapshot

GPU = {"pool": "gpu", "zone": "1"}
NODES = {
    "n1": make.node("n1", "ss1"),
    "n2": replace(make.node("n2", "ss2"), labels=GPU),
    "n3": make.node("n3", ""),
    "n4": replace(make.node("n4", ""), labels=GPU),
}
SINGLE = make.snapshot([], [make.identity()], [make.binding()], nodes=NODES)
ON_BINDING = make.policy(assign_on_binding=True)


def promised(selector: str = "", policy: Policy = ON_BINDING, snapshot: Snapshot = SINGLE) -> set[str]:
    """Return the names of the targets on which the one binding wants its identity before any pod."""
    given_binding = replace(make.binding(), node_selector=selector)
    promises = steps.finish(idle_identities.preassigned(replace(snapshot, bindings=(given_binding,)), policy))
    assert all(identities == {make.identity_id("reader")} for identities in promises.values())
    return {target.name for target in promises}


def test_a_binding_promises_its_identity_to_every_scale_set() -> None:
    """With assignment on binding, an identity is wanted on every scale set.

    It is wanted on no single VM: there may be hundreds.
    """
    assert promised() == {"ss1", "ss2"}


@pytest.mark.parametrize(
    ("selector", "names"),
    [
        ("pool=gpu", {"ss2", "n4"}),
        ("pool==gpu, zone=1", {"ss2", "n4"}),
        ("!pool", {"ss1", "n3"}),
        ("pool", {"ss2", "n4"}),
        ("pool!=gpu", {"ss1", "n3"}),
        ("pool=gpu,zone=2", set()),
        ("pool in (gpu)", set()),
        ("!pool=gpu", set()),
    ],
)
def test_a_node_selector_chooses_targets(selector: str, names: set[str]) -> None:
    """A binding's node selector chooses scale sets and single VMs by their nodes' labels.

    A malformed one chooses nothing.
    """
    assert promised(selector) == names


def test_by_default_nothing_is_promised() -> None:
    """By default an identity is assigned with its first pod, as upstream does it."""
    assert promised(policy=make.policy()) == set()


def test_what_cannot_be_used_is_not_promised() -> None:
    """A binding without a usable identity is not wanted anywhere.

    The identity is missing, its resource ID is malformed or not allowed, or the binding has no selector.
    """
    assert promised(snapshot=replace(SINGLE, identities={})) == set()
    malformed = make.identity(resource_id="nonsense")
    assert promised(snapshot=replace(SINGLE, identities={malformed.key: malformed})) == set()
    assert promised(policy=replace(ON_BINDING, allow_list=True)) == set()
    without_selector = replace(SINGLE, bindings=(make.binding(selector=""),))
    assert steps.finish(idle_identities.preassigned(without_selector, ON_BINDING)) == {}
    allowed = replace(SINGLE, allow_list={"default": make.resource_id("*")})
    assert promised(policy=replace(ON_BINDING, allow_list=True), snapshot=allowed) == {"ss1", "ss2"}


def test_the_first_pod_finds_its_identity_and_is_assigned_in_one_write() -> None:
    """An identity assigned in advance counts as in use, so that the first pod needs one write and no ARM call."""
    previous = planning.plan(assigning.desired_assignments(SINGLE, ON_BINDING), SINGLE, ON_BINDING)
    assert previous.in_use[make.target("ss1")] == {make.identity_id("reader")}
    there = replace(SINGLE, pods=(make.pod(),), targets={make.target("ss1"): make.state("reader")})
    (write,) = planning.plan(assigning.desired_assignments(there, ON_BINDING), there, ON_BINDING).writes
    assert write.assigned_identity.state == AssignedState.ASSIGNED


def test_an_empty_selector_selects_every_label() -> None:
    """A selector without requirements selects every node, as in Kubernetes; `a=b=c` is malformed."""
    assert parse_selector(" , ") == LabelSelector()
    assert isinstance(parse_selector("a=b=c"), BadSelector)


IN_USE: InUse = {make.target(): frozenset({make.identity_id("used")})}


def ids(names: Iterable[str]) -> frozenset[IdentityId]:
    """Return the IDs of identities by their names."""
    return frozenset(map(make.identity_id, names))


def test_an_identity_stays_for_the_delay_after_its_last_pod() -> None:
    """An unused identity leaves when the delay is over; `due_seconds` says how long that takes."""
    put: InUse = {make.target(): ids(["used", "idle"])}
    first = idle_identities.retained(IN_USE, put, {}, 100.0, 60.0)
    assert first.in_use == put
    assert first.due_seconds == 60.0
    later = idle_identities.retained(IN_USE, put, first.idle_since, 150.0, 60.0)
    assert (later.in_use, later.due_seconds) == (put, 10.0)
    expired = idle_identities.retained(IN_USE, put, later.idle_since, 160.0, 60.0)
    assert (expired.in_use, expired.due_seconds) == (IN_USE, None)


def test_a_pod_in_between_begins_the_delay_anew() -> None:
    """The delay is counted from the end of the last pod."""
    put: InUse = {make.target(): ids(["used"])}
    idle = idle_identities.retained({}, put, {}, 100.0, 60.0)
    assert idle.in_use == put
    used = idle_identities.retained(IN_USE, put, idle.idle_since, 150.0, 60.0)
    assert used.idle_since == {}
    assert idle_identities.retained({}, put, used.idle_since, 170.0, 60.0).due_seconds == 60.0


NAMES = st.frozensets(st.sampled_from(["a", "b", "c"])).map(ids)


@given(NAMES, NAMES, st.floats(0, 100))
def test_lingering_only_ever_adds_what_mic_put(
    used: frozenset[IdentityId], put: frozenset[IdentityId], delay: float
) -> None:
    """Without a delay nothing is retained; with one, only identities that MIC itself put on the target."""
    remaining = idle_identities.retained({make.target(): used}, {make.target(): put}, {}, 5.0, delay)
    assert used <= remaining.in_use[make.target()] <= used | put
    assert delay or remaining.in_use[make.target()] == used
