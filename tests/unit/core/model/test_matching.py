"""What a pod costs where there are many bindings: counts of calls, not times."""

import sys
from collections.abc import Callable
from dataclasses import replace
from types import FrameType

import pytest

import make
from podidentity.core.assignment import assigning, planning
from podidentity.core.assignment.planning import Plan
from podidentity.core.model import matching
from podidentity.core.model.matching import IneffectiveBinding
from podidentity.core.model.policy import Policy
from podidentity.core.model.snapshot import Snapshot


def plan(snapshot: Snapshot, policy: Policy | None = None) -> Plan:
    """Plan a snapshot."""
    given = policy or make.policy()
    return planning.plan(assigning.desired_assignments(snapshot, given), snapshot, given)


def work(act: Callable[[], object]) -> int:
    """Return how many functions are called, C ones too; what the collector calls in between adds a few."""
    calls = 0

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        del frame, argument
        calls += event in ("call", "c_call")

    act()  # fills the caches of parsing
    previous = sys.getprofile()
    sys.setprofile(count)
    try:
        act()
    finally:
        sys.setprofile(previous)
    return calls


def teams(number: int, *, pods: int = 5, namespaced: bool = True) -> Snapshot:
    """Teams that all chose the same label, each with a binding of its own."""
    names = [f"team-{item}" for item in range(number)]
    return make.snapshot(
        [make.pod(f"p{pod}", name) for name in names for pod in range(pods)],
        [make.identity(f"of-{name}", name, namespaced=namespaced) for name in names],
        [make.binding(namespace=name, azure_identity=f"of-{name}") for name in names],
    )


@pytest.mark.parametrize("forced", [True, False])
def test_a_label_that_many_namespaces_use_costs_each_pod_its_own_binding(*, forced: bool) -> None:
    """Four times as many teams cost four times the work: no pod looks at the bindings of other teams."""
    policy = make.policy(force_namespaced=forced)
    few, many = teams(40, namespaced=not forced), teams(160, namespaced=not forced)
    assert len(plan(many, policy).writes) == 160 * 5
    assert plan(many, policy).ineffective == ()
    assert work(lambda: plan(many, policy)) < 4.4 * work(lambda: plan(few, policy))


def test_bindings_that_select_nothing_cost_no_pod_anything() -> None:
    """A thousand more bindings cost the same whether there are 10 pods or 500."""
    others = [make.binding(f"b{number}", selector=f"s{number}") for number in range(1000)]

    def more(pods: int) -> int:
        snapshot = make.snapshot([make.pod(f"p{pod}") for pod in range(pods)], [make.identity()], [make.binding()])
        with_others = replace(snapshot, bindings=(*snapshot.bindings, *others))
        return work(lambda: plan(with_others)) - work(lambda: plan(snapshot))

    assert more(500) < 1.1 * more(10)


def test_pods_without_a_binding_of_their_own_hear_of_a_few_others() -> None:
    """In namespaced mode a pod without a binding is told of some bindings of others.

    A hundred teams may use its label, and the advice is needed only once or twice.
    """
    policy, lonely = make.policy(force_namespaced=True), make.pod(namespace="lonely")
    snapshot = teams(100)
    result = assigning.desired_assignments(replace(snapshot, pods=(*snapshot.pods, lonely)), policy).ineffective
    assert {item.code for item in result} == {"OtherNamespace"}
    assert len(result) == matching.NEIGHBOURS_NAMED
    assert {item.pod for item in result} == {lonely.key}


def test_of_a_label_that_nothing_selects_nothing_comes() -> None:
    """A label that no binding selects leads to nothing."""
    selections = matching.Selections([make.binding()], {}, force_namespaced=False)
    assert selections.selecting("default", "unknown") == ()
    assert selections.selecting("default", "reader") == selections.selecting("default", "reader") != ()


def test_each_namespace_without_a_binding_is_told_where_it_stands() -> None:
    """Bindings of other namespaces are reported to each namespace with advice of its own."""
    selections = matching.Selections([make.binding(namespace="team")], {}, force_namespaced=True)
    message = [
        item.message
        for name in "ab"
        for item in selections.results_for(make.pod(namespace=name))
        if isinstance(item, IneffectiveBinding)
    ]
    assert message == [f"it belongs to namespace team and namespaced mode is on; bind in {name}" for name in "ab"]


def test_two_bindings_of_one_identity_give_it_once() -> None:
    """The first in binding order counts, and the other is not reported as a mistake."""
    bindings = [make.binding("b"), make.binding("a")]
    (write,) = (outcome := plan(make.snapshot([make.pod()], [make.identity()], bindings))).writes
    assert (write.assigned_identity.binding.key.name, outcome.ineffective) == ("a", ())
