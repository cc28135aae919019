"""What the worker of one target does next: examples first, then what must hold wherever it is interrupted."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import make
from podidentity.core.model.arm import ArmState, IdentityId
from podidentity.core.target import next_step, outcomes, quarantine
from podidentity.core.target import state as target_state
from podidentity.core.target.blame import ArmRefusal
from podidentity.core.target.drift import TargetChange
from podidentity.core.target.state import Read, Record, Send, Verify, Wait
from unit.core.azure_model import TARGET, Azure, Run, carried, fresh, ids, one, run

THROTTLED = ArmRefusal(429, "TooManyRequests", "slow down", 10.0)
BROKEN = ArmRefusal(500, "InternalServerError", "oh")


def waits_until(world: Run) -> float:
    """Return the moment at which something is to be done."""
    step = next_step.next_step(world.state, world.now)
    assert isinstance(step, Wait)
    return step.until


def test_a_burst_costs_one_get_and_one_patch() -> None:
    """Pods that come within the window share the PATCH, and ARM's answer spares a second GET."""
    world = run(wants=["a"])
    world.step()
    world.now += 0.03
    world.want("a", "b")
    world.until(world.now + 10)
    assert world.reads == 1
    assert world.patches == [TargetChange((one("a"), one("b")))]
    assert world.azure.carries.keys() == ids("a", "b")


def test_the_first_pod_waits_for_the_window_and_no_longer() -> None:
    """A single pod is delayed by the window for bursts, 50 ms, and by nothing else."""
    world = run(wants=["a"])
    world.until(world.now + 10)
    assert world.patched_at == [pytest.approx(0.05)]


def test_the_emptier_the_bucket_the_longer_a_burst_gathers() -> None:
    """The window grows as the rate limiter empties, so that a stream of new identities does not cost a PATCH each."""
    world = run(wants=["a"])
    names = ["a"]
    for number in range(100):
        world.until(world.now + 0.1)
        names.append(f"i{number}")
        world.want(*names)
    world.until(world.now + 10)
    assert len(world.azure.carries) == 101
    assert len(world.patches) <= 12


def test_an_answer_without_client_ids_costs_one_get_more() -> None:
    """When ARM's answer to a PATCH lacks client IDs, a GET follows, since the plan needs them."""
    world = run(Azure(tells=False), wants=["a"])
    world.until(world.now + 10)
    assert world.reads == 2
    assert world.state.arm_state == world.azure.get()


def test_nothing_happens_while_nothing_changes() -> None:
    """Without changes there is one GET for each reconcile interval, which also finds and repairs what Azure lost."""
    world = run(wants=["a"])
    world.until(world.now + 175)
    assert (world.reads, len(world.patches)) == (1, 1)
    del world.azure.carries[one("a")]
    world.until(world.now + 10)
    assert (world.reads, len(world.patches)) == (2, 2)
    assert world.azure.carries.keys() == ids("a")


def test_a_target_of_which_nothing_is_wanted_is_never_asked() -> None:
    """A target of which nothing is wanted is never read, and may be forgotten."""
    world = run()
    assert next_step.next_step(world.state, 0) == Wait(target_state.INFINITY)
    assert target_state.is_idle(world.state)


def test_a_wish_that_is_none_changes_nothing() -> None:
    """The same wanted identities again leave the state as it is: a plan is made at every event."""
    world = run(wants=["a"])
    assert next_step.want(world.state, ids("a"), 5.0) is world.state


def test_what_is_put_is_recorded_before_and_struck_off_after() -> None:
    """Identities are recorded before they are assigned and struck off after they are removed.

    A leader that dies in between leaves a record with an identity too many, never one too few.
    """
    world = run(wants=["a"])
    world.until(world.now + 10)
    world.want()
    world.until(world.now + 10)
    kinds = [type(step) for _, step in world.log]
    assert kinds == [Read, Record, Send, Read, Send, Record]
    assert world.assigned_by_mic == frozenset()
    assert target_state.is_idle(world.state)


def test_what_somebody_else_just_put_there_survives_the_last_removal() -> None:
    """The target is read before the last removal, so that an identity that somebody else added meanwhile stays."""
    world = run(wants=["a"])
    world.until(world.now + 5)
    world.azure.carries[one("foreign")] = "client-of-foreign"
    world.want()
    world.until(world.now + 10)
    sends = [step for _, step in world.log if isinstance(step, Send)]
    assert one("foreign") in sends[-1].arm_state.identities
    assert world.azure.carries.keys() == ids("foreign")


def test_a_patch_is_made_from_a_fresh_answer() -> None:
    """The target is read right before a PATCH.

    A PATCH says whether there is a system-assigned identity; from an old answer it could remove one.
    """
    world = run(wants=["a"])
    world.until(world.now + 60)
    world.want("a", "b")
    world.until(world.now + 10)
    assert [type(step) for _, step in world.log][3:] == [Read, Record, Send]


def test_150_at_once_and_additions_first() -> None:
    """A PATCH has at most 150 identities, ARM's limit; removals wait until all additions are sent."""
    old = [f"old{number}" for number in range(160)]
    new = [f"new{number:03}" for number in range(200)]
    world = run(Azure(carried(*old)), wants=new, assigned_by_mic=old)
    world.until(world.now + 60)
    assert [(len(change.assign), len(change.unassign)) for change in world.patches] == [
        (150, 0),
        (50, 0),
        (0, 150),
        (0, 10),
    ]
    assert world.azure.carries.keys() == ids(*new)


def test_retry_after_is_obeyed_and_costs_one_patch() -> None:
    """After a 429 nothing is sent before Retry-After is over, also when pods come meanwhile."""
    world = run(Azure(faults=[THROTTLED]), wants=["a"])
    world.until(1005.0)
    world.want("a", "b")
    (failing, _) = target_state.failing(world.state)
    assert "throttles" in failing.message
    world.until(1100.0)
    assert world.patched_at == [pytest.approx(0.05), pytest.approx(10.05)]
    assert target_state.failing(world.state) == ()


def test_without_retry_after_throttling_lasts_until_the_bucket_has_a_token() -> None:
    """After a 429 without Retry-After the next PATCH waits until our own rate limiter has a token."""
    world = run(Azure(faults=[replace(THROTTLED, retry_after_seconds=None)]), wants=["a"])
    world.until(1100.0)
    assert world.patched_at == [pytest.approx(0.05), pytest.approx(15.05)]


def test_an_error_that_passes_is_retried_soon_and_then_later() -> None:
    """After two answers of 500 the third PATCH succeeds within seconds; users are told from the second failure on."""
    world = run(Azure(faults=[BROKEN, BROKEN]), wants=["a"])
    world.until(1000.06)
    assert target_state.failing(world.state) == ()
    world.until(1001.5)
    assert [one.code for one in target_state.failing(world.state)] == ["InternalServerError"]
    world.until(1100.0)
    assert world.patched_at == [pytest.approx(0.05), pytest.approx(1.05), pytest.approx(3.05)]
    assert world.state.failures == 0


def test_a_record_that_cannot_be_written_holds_the_patch() -> None:
    """While the record cannot be written, no PATCH is sent: MIC assigns only what it has recorded."""
    world = run(wants=["a"])
    world.step()
    world.until(1000.049)
    world.now = 1000.06
    step = next_step.next_step(world.state, world.now)
    assert step == Record(add=ids("a"))
    assert isinstance(step, Record)
    world.state = outcomes.step_failed(world.state, step, ArmRefusal(0, "", "no answer"), world.now)
    assert waits_until(world) == pytest.approx(1001.06)


def test_reads_obey_the_bucket() -> None:
    """With an empty bucket the next GET waits for one token, 5 s at 12 a minute."""
    world = run(wants=["a"])
    world.state = replace(world.state, reads=replace(world.state.reads, tokens=0.0, updated_at=world.now))
    assert waits_until(world) == pytest.approx(1005.0, abs=0.01)


# One bad identity.


def test_a_named_identity_is_set_aside_and_the_others_succeed_in_the_next_patch() -> None:
    """One identity that ARM names as the cause costs the others one more PATCH."""
    world = run(Azure(bad=ids("b")), wants=["a", "b", "c"])
    world.until(1001.0)
    assert [len(change.assign) for change in world.patches] == [3, 2]
    assert world.azure.carries.keys() == ids("a", "c")
    (failing,) = target_state.failing(world.state)
    assert (failing.identity, failing.target, failing.code) == (one("b"), TARGET, "LinkedAuthorizationFailed")
    assert "grant Managed Identity Operator" in failing.message
    assert one("b") not in world.assigned_by_mic


@pytest.mark.parametrize("all_names", [True, False])
def test_two_bad_among_six(*, all_names: bool) -> None:
    """Four good identities are assigned within a second; the bad ones cost at most three refused PATCHes in 20 s."""
    bad = ids("b", "e")
    world = run(Azure(bad=bad, all_names=all_names), wants=list("abcdef"))
    world.until(1001.0)
    assert world.azure.carries.keys() == ids(*"acdf")
    world.until(1020.0)
    assert sum(bool(bad & {*change.assign}) for change in world.patches) <= 3


@pytest.mark.parametrize("granted_at", range(20, 200, 7))
def test_whoever_is_granted_the_role_is_assigned_within_a_minute(granted_at: float) -> None:
    """Two refused identities are assigned within a minute of the role's grant, however long they were refused."""
    world = run(Azure(bad=ids("b", "e")), wants=list("abcdef"))
    world.until(1000.0 + granted_at)
    world.azure.bad = frozenset()
    world.until(1000.0 + granted_at + 60)
    assert world.azure.carries.keys() == ids(*"abcdef")


def test_whoever_is_touched_is_tried_at_once() -> None:
    """A change of the AzureIdentity ends its pause: a user who corrected something does not wait."""
    world = run(Azure(bad=ids("b")), wants=["a", "b"])
    world.until(1070.0)
    world.azure.bad = frozenset()
    world.state = next_step.touch(world.state, one("b"))
    world.until(world.now + 0.001)
    assert world.azure.carries.keys() == ids("a", "b")
    assert target_state.failing(world.state) == ()


@pytest.mark.parametrize("names", [True, False])
def test_a_refusal_that_comes_when_nobody_wants_it_any_more_costs_the_next_one_a_pause(*, names: bool) -> None:
    """A refusal that arrives after the pod is gone still counts.

    A new pod of the identity, which now has its role, is served after the first pause.
    """
    world = run(Azure(names=names), wants=["b"])
    step = world.step()
    while not isinstance(step, Send):
        step = next_step.next_step(world.state, world.now)
        if not isinstance(step, Send):
            world.step()
    under_way = next_step.want(outcomes.patch_started(world.state, step, world.now), frozenset(), world.now)
    refusal = Azure(bad=ids("b"), names=names).patch(step.change)
    assert isinstance(refusal, ArmRefusal)
    world.state = outcomes.step_failed(under_way, step, refusal, world.now)
    world.want("b")
    world.until(world.now + quarantine.FIRST_PAUSE_SECONDS + 1)
    assert world.azure.carries.keys() == ids("b")


def test_an_identity_that_comes_and_goes_is_not_tried_afresh_each_time() -> None:
    """A refused identity whose pods come and go keeps its pause.

    A tenant who creates and deletes such pods all the time does not use up the PATCHes of the target.
    """
    world = run(Azure(bad=ids("b")), wants=["a"])
    world.until(1010.0)
    for _ in range(100):
        world.want("a", "b")
        world.until(world.now + 1)
        world.want("a")
        world.until(world.now + 1)
    assert len(world.patches) <= 3 + 200 / quarantine.LONGEST_PAUSE_SECONDS


def test_what_an_idle_target_has_spent_and_refused_counts_when_it_is_used_again() -> None:
    """Rate limits and pauses outlive the time in which a target has no pod.

    The refused identity is its only one and comes and goes with its pod; only what ARM says is on the target is
    forgotten.
    """
    world = run(Azure(bad=ids("b")), wants=["b"])
    for _ in range(100):
        world.until(world.now + 1)
        world.want()
        world.until(world.now + 1)
        assert target_state.is_idle(world.state)
        world.state = target_state.resume(fresh(), replace(world.state, arm_state=None))
        assert (world.state.arm_state, world.state.doubtful) == (None, True)
        world.want("b")
    assert len(world.patches) <= 3 + 200 / quarantine.LONGEST_PAUSE_SECONDS
    assert world.reads <= 36 + 200 / 5


def test_an_idle_target_is_remembered_while_it_matters() -> None:
    """A target is remembered until its buckets are full and its pauses are over.

    After the last refusal it is remembered for some time longer.
    """
    state = fresh()
    assert target_state.matters_until(state) <= 0
    assert target_state.matters_until(outcomes.read_started(state, 1000.0)) == pytest.approx(1005, abs=0.1)
    spent = replace(state, updates=state.updates.take(1000.0, 12))
    assert target_state.matters_until(spent) == pytest.approx(1180, abs=0.1)
    assert target_state.matters_until(replace(state, held_until=4600.0)) == 4600
    assert target_state.matters_until(replace(state, removals_held_until=1060.0)) == 1060
    refused = quarantine.set_aside(state.quarantine, ids("b"), BROKEN, 1000.0)
    until = 1000 + quarantine.FIRST_PAUSE_SECONDS + target_state.REMEMBERED_SECONDS
    assert target_state.matters_until(replace(state, quarantine=refused)) == until


def test_of_refused_identities_that_nobody_uses_some_are_remembered() -> None:
    """Of refused identities without a pod the oldest are forgotten.

    Names that a tenant makes up must not fill MIC's memory.
    """
    names = [one(f"n{number}") for number in range(quarantine.UNWANTED_REMEMBERED + 10)]
    remaining = quarantine.Quarantine()
    for name in names:
        remaining = quarantine.set_aside(remaining, [name], ArmRefusal(403, "AuthorizationFailed", "no"), 0.0)
    assert [*quarantine.keep(remaining, frozenset(names[:1])).asides] == [names[0], *names[10:]]


def test_whoever_was_put_or_refused_has_been_tried() -> None:
    """An identity that was assigned or refused counts as tried; one that is still to be sent does not."""
    world = run(Azure(bad=ids("b")), wants=["a", "b"])
    assert not any(target_state.is_tried(world.state, one(name)) for name in "ab")
    world.until(1010.0)
    assert [target_state.is_tried(world.state, one(name)) for name in "abc"] == [True, True, False]


def test_touching_what_is_well_changes_nothing() -> None:
    """A change of an AzureIdentity that is assigned, such as a new label, costs no PATCH."""
    world = run(wants=["a"])
    world.until(1010.0)
    world.state = next_step.touch(world.state, one("a"))
    world.until(1100.0)
    assert len(world.patches) == 1


@pytest.mark.parametrize("culprit", range(0, 150, 13))
def test_an_unnamed_culprit_among_150_is_found_by_halving(culprit: int) -> None:
    """When ARM names nobody, the bad one of 150 identities is found within 90 s and all others are assigned."""
    names = [f"i{number:03}" for number in range(150)]
    world = run(Azure(bad=ids(names[culprit]), names=False), wants=names)
    world.until(1090.0)
    assert [one.identity for one in target_state.failing(world.state)] == [one(names[culprit])]
    assert len(world.azure.carries) == 149


def test_a_single_unnamed_culprit_is_set_aside_without_halving() -> None:
    """The only addition of a refused PATCH is set aside at once, although ARM does not name it."""
    world = run(Azure(bad=ids("b"), names=False), wants=["b"])
    world.until(1001.0)
    assert len(world.patches) == 1
    assert [one.identity for one in target_state.failing(world.state)] == [one("b")]


def test_the_last_of_a_group_is_bad_without_being_tried_again() -> None:
    """When all others of a refused group have succeeded, the last one is set aside without a PATCH of its own."""
    world = run(Azure(bad=ids("b"), names=False), wants=["a", "b"])
    world.until(1001.0)
    assert [len(change.assign) for change in world.patches] == [2, 1]
    assert [one.identity for one in target_state.failing(world.state)] == [one("b")]


def test_a_group_that_loses_a_member_is_no_group_any_more() -> None:
    """When a suspect is not wanted any more, the others are no suspects either.

    The one that left may have been the bad one.
    """
    world = run(Azure(bad=ids("b"), names=False), wants=["a", "b", "c"])
    while not world.state.quarantine.suspects:
        world.step()
    world.want("a", "c")
    assert world.state.quarantine.suspects == ()
    world.until(1001.0)
    assert world.azure.carries.keys() == ids("a", "c")
    assert target_state.failing(world.state) == ()


def test_many_bad_ones_leave_tokens_to_the_good_ones() -> None:
    """A new identity is assigned within half a second, though thirty refused ones are retried meanwhile."""
    bad = [f"bad{number}" for number in range(30)]
    world = run(Azure(bad=ids(*bad), all_names=True), wants=bad)
    world.until(1600.0)
    world.want(*bad, "good")
    world.until(1600.5)
    assert world.azure.carries.keys() == ids("good")


def test_many_that_are_touched_leave_tokens_to_the_good_ones() -> None:
    """When thirty failing AzureIdentities change at once, a new identity is still assigned within seconds."""
    bad = [f"bad{number}" for number in range(30)]
    world = run(Azure(bad=ids(*bad), all_names=True), wants=bad)
    world.until(1600.0)
    for name in bad:
        world.state = next_step.touch(world.state, one(name))
    world.until(1600.5)
    world.want(*bad, "good")
    world.until(1603.0)
    assert world.azure.carries.keys() == ids("good")
    assert world.state.updates.tokens_at(world.now) >= 4


def test_removals_are_not_held_up_by_a_bad_addition() -> None:
    """When ARM refuses a PATCH and names nobody, removals are sent in a PATCH of their own."""
    world = run(Azure(carried("old"), bad=ids("b"), names=False), wants=["b"], assigned_by_mic=["old"])
    world.until(1005.0)
    assert world.azure.carries == {}
    assert world.patches == [
        TargetChange((one("b"),), (one("old"),)),
        TargetChange((one("b"),)),
        TargetChange((), (one("old"),)),
    ]


def test_a_removal_that_is_refused_holds_up_no_addition() -> None:
    """A refused removal is tried again later by itself; additions do not wait for it."""
    refusal = ArmRefusal(400, "FailedIdentityOperation", f"cannot remove {make.resource_id('old')}")
    world = run(Azure(carried("old"), faults=[refusal]), wants=["a"], assigned_by_mic=["old"])
    world.until(1000.5)
    assert world.azure.carries.keys() == ids("a", "old")
    world.until(1010.0)
    assert world.azure.carries.keys() == ids("a")


def test_an_identity_of_mics_that_was_deleted_in_azure_is_taken_off() -> None:
    """An identity deleted in Azure is removed from the target, and assigned again once it exists.

    It would fail every later PATCH.
    """
    world = run(Azure(carried("dead"), dead=ids("dead")), wants=["dead", "a"], assigned_by_mic=["dead"])
    world.until(1005.0)
    assert world.azure.carries.keys() == ids("a")
    assert [one.identity for one in target_state.failing(world.state)] == [one("dead")]
    world.azure.dead = frozenset()
    world.until(1100.0)
    assert world.azure.carries.keys() == ids("a", "dead")


def test_a_deleted_identity_that_nobody_wants_any_more_is_not_put_back() -> None:
    """An identity that was deleted in Azure and that no pod wants any more is taken off for good."""
    world = run(Azure(carried("dead"), dead=ids("dead")), wants=["dead", "a"], assigned_by_mic=["dead"])
    world.until(1005.0)
    world.want("a")
    world.until(1400.0)
    assert world.azure.carries.keys() == ids("a")
    assert target_state.failing(world.state) == ()


def test_a_broken_identity_of_somebody_elses_is_told_and_not_touched() -> None:
    """An identity that MIC did not put there stays on the target though it spoils each PATCH; MIC retries seldom."""
    world = run(Azure(carried("foreign"), dead=ids("foreign")), wants=["a"])
    world.until(1120.0)
    assert world.azure.carries.keys() == ids("foreign")
    assert "MIC did not put there" not in target_state.failing(world.state)[0].message
    assert len(world.patches) <= 8
    world.azure.dead = frozenset()
    world.until(1200.0)
    assert world.azure.carries.keys() == ids("foreign", "a")


def test_an_operation_that_failed_is_looked_at_before_anything_else() -> None:
    """After a failed operation the target is read first, since part of the work may have been done."""
    refusal = ArmRefusal(200, "LinkedAuthorizationFailed", f"no permission on {make.resource_id('b')}")
    world = run(Azure(faults=[refusal]), wants=["a", "b"])
    while not world.patches:
        world.step()
    world.azure.carries |= carried("a", "b")
    world.until(1001.0)
    assert [type(step) for _, step in world.log] == [Read, Record, Send, Read]
    assert target_state.failing(world.state) == ()


# Targets that go, identities that are made again.


def test_a_target_that_is_gone_is_told_and_looked_at_again_when_it_is_needed() -> None:
    """A target that is gone loses its record and is reported; when it is back, its identities are assigned again."""
    world = run(Azure(is_gone=True), wants=["a"], assigned_by_mic=["a"])
    world.until(1010.0)
    assert world.assigned_by_mic == frozenset()
    assert [one.code for one in target_state.failing(world.state)] == ["ResourceNotFound"]
    world.azure.is_gone = False
    world.until(1030.0)
    assert world.azure.carries.keys() == ids("a")
    assert target_state.failing(world.state) == ()


def test_a_target_that_is_gone_and_not_needed_is_forgotten() -> None:
    """A target that is gone and has no pod becomes idle without a PATCH."""
    world = run(Azure(is_gone=True), assigned_by_mic=["a"])
    world.until(1010.0)
    assert target_state.is_idle(world.state)
    assert world.patches == []


def test_an_identity_without_client_id_is_renewed_once() -> None:
    """An identity without client ID on the target is removed and assigned again, once.

    It was deleted in Azure and made again under the same name.
    """
    world = run(Azure({one("a"): ""}, client_ids={one("a"): ""}), wants=["a"], assigned_by_mic=["a"])
    world.until(1100.0)
    assert world.patches == [TargetChange((), (one("a"),)), TargetChange((one("a"),))]


def test_a_changed_azureidentity_that_names_another_client_id_renews_once() -> None:
    """A new client ID in the AzureIdentity has the identity removed and assigned again, once.

    It means that the identity was made again in Azure.
    """
    world = run(wants=["a"])
    world.until(1010.0)
    world.azure.client_ids = {one("a"): "second"}
    world.state = next_step.touch(next_step.expect(world.state, {one("a"): "second"}), one("a"))
    world.until(1020.0)
    assert world.patches[1:] == [TargetChange((), (one("a"),)), TargetChange((one("a"),))]
    assert world.azure.carries == {one("a"): "second"}
    world.state = next_step.expect(world.state, {one("a"): "mistaken"})
    world.until(1400.0)
    assert len(world.patches) == 3


def test_a_mistake_in_a_changed_azureidentity_takes_nothing_off() -> None:
    """An identity stays when ARM, asked for it, names the client ID that is on the target.

    The AzureIdentity is wrong then.
    """
    world = run(wants=["a"])
    world.until(1010.0)
    world.state = next_step.touch(next_step.expect(world.state, {one("a"): "mistaken"}), one("a"))
    world.until(1400.0)
    assert len(world.patches) == 1
    assert [step for _, step in world.log if isinstance(step, Verify)] == [Verify(one("a"))]


def test_where_arm_does_not_tell_an_identity_stays() -> None:
    """When MIC may not read the identity at ARM, the identity stays on the target."""
    world = run(wants=["a"])
    world.until(1010.0)
    state = next_step.touch(next_step.expect(world.state, {one("a"): "second"}), one("a"))
    step = next_step.next_step(state, world.now)
    assert isinstance(step, Verify)
    world.state = outcomes.step_failed(state, step, ArmRefusal(403, "AuthorizationFailed", "no"), world.now)
    world.until(1400.0)
    assert len(world.patches) == 1


def test_a_question_waits_for_arms_bucket() -> None:
    """The question waits for the rate limiter, however often a tenant changes AzureIdentities."""
    world = run(wants=["a"])
    world.until(1010.0)
    state = next_step.touch(next_step.expect(world.state, {one("a"): "second"}), one("a"))
    empty = replace(state, reads=replace(state.reads, tokens=0.0, updated_at=world.now))
    assert isinstance(next_step.next_step(empty, world.now), Wait)


def test_a_wrong_client_id_takes_nothing_off() -> None:
    """A client ID that was wrong from the beginning removes nothing from the target."""
    world = run(wants=["a"], named_client_ids={one("a"): "mistaken"})
    world.until(1400.0)
    assert len(world.patches) == 1


@pytest.mark.parametrize("busy", [True, False])
def test_somebody_elses_identity_and_one_under_change_are_not_renewed(*, busy: bool) -> None:
    """An identity without client ID stays when MIC did not put it there, and while the machine is being changed."""
    world = run(Azure({one("a"): ""}), wants=["a"], assigned_by_mic=["a"] if busy else [])
    answer = replace(world.azure.get(), is_busy=busy)
    world.state = outcomes.read_done(outcomes.read_started(world.state, world.now), answer, world.now)
    assert isinstance(next_step.next_step(world.state, world.now + 1), Wait)


def test_client_ids_about_which_azureidentities_disagree_are_not_expected() -> None:
    """When AzureIdentities disagree about a client ID, none is expected.

    No tenant alone can have another's identity removed for a moment.
    """
    a, b, c, d = (one(name) for name in "abcd")
    named: list[tuple[IdentityId | None, str]] = [(a, "X"), (a, "x"), (b, "y"), (b, "z"), (None, "w")]
    assert target_state.expected_client_ids(named) == {a: "x"}
    assert target_state.expected_client_ids([(c, ""), (d, ""), (d, "wrong")]) == {}


# What must always hold.

NAMES = list("abcdefgh")
SOME = st.frozensets(st.sampled_from(NAMES))
FAULTS = st.lists(st.sampled_from([THROTTLED, BROKEN, replace(THROTTLED, retry_after_seconds=None)]), max_size=4)


@st.composite
def worlds(draw: st.DrawFn) -> Run:
    """Draw any target, wanted identities, record and faults."""
    there, put, wants, fixed = draw(SOME), draw(SOME), draw(SOME), draw(SOME)
    azure = Azure(
        carried(*there),
        bad=ids(*draw(SOME)),
        names=draw(st.booleans()),
        all_names=draw(st.booleans()),
        tells=draw(st.booleans()),
        patch_seconds=draw(st.sampled_from([0.0, 5.0])),
        faults=draw(FAULTS),
    )
    policy = make.policy(immutable_client_ids=frozenset(f"client-of-{name}" for name in fixed))
    return run(azure, wants=sorted(wants), assigned_by_mic=sorted(put), policy=policy)


def settled(there: frozenset[IdentityId], put: frozenset[IdentityId], world: Run) -> frozenset[IdentityId]:
    """Return what must be there in the end."""
    remaining = {one for one in there if f"client-of-{one.name}" in world.state.policy.immutable_client_ids}
    return (there - (put - world.state.in_use - remaining)) | (world.state.in_use - (world.azure.bad - there))


@given(worlds(), st.data())
@settings(max_examples=150)
def test_wherever_it_is_cut_it_ends_the_same(world: Run, data: st.DataObject) -> None:
    """Crashes between any two steps, together with any faults of ARM, cost time and never correctness."""
    there, put = frozenset(world.azure.carries), world.assigned_by_mic
    desired = settled(there, put, world)
    for _ in range(data.draw(st.integers(0, 3))):
        for _ in range(data.draw(st.integers(0, 6))):
            world.step()
        world.crash()
    world.until(world.now + 600)
    assert frozenset(world.azure.carries) == desired
    assert {one.identity for one in target_state.failing(world.state)} == world.state.in_use - desired
    assert world.assigned_by_mic <= put | world.state.in_use


@given(worlds(), st.lists(SOME, max_size=8))
@settings(max_examples=150)
def test_whatever_is_wished_arms_limits_hold_and_nobody_is_robbed(world: Run, wishes: list[frozenset[str]]) -> None:
    """Whatever is wanted, ARM's limits hold, and no foreign or immutable identity is removed.

    ARM takes 12 PATCHes at once, 4 a minute, and 150 identities in each.
    """
    foreign = frozenset(world.azure.carries) - world.assigned_by_mic
    for wish in wishes:
        world.want(*wish)
        world.until(world.now + 3)
        for change in world.patches[-1:]:
            assert not foreign & {*change.unassign}
    for number, begin in enumerate(world.patched_at):
        for later, end in enumerate(world.patched_at[number:], 1):
            assert later <= 12 + (end - begin) / 15 + 1e-6
    for _, step in world.log:
        if isinstance(step, Send):
            fixed = world.state.policy.immutable_client_ids
            assert not {f"client-of-{one.name}" for one in step.change.unassign} & fixed
            assert len(step.change.assign) + len(step.change.unassign) <= 150


def test_from_every_point_of_a_story_a_new_leader_ends_where_the_old_one_would_have() -> None:
    """The leader is lost at each step once: a PATCH that it was sending took effect, but nobody has the answer."""
    for limited in range(30):
        world = run(
            Azure(carried("old", "foreign"), bad=ids("b"), names=False), wants=list("abc"), assigned_by_mic=["old"]
        )
        for _ in range(limited):
            world.step()
        step = next_step.next_step(world.state, world.now)
        if isinstance(step, Send):
            world.azure.patch(step.change)
        world.crash()
        world.until(world.now + 120)
        assert world.azure.carries.keys() == ids("a", "c", "foreign"), f"cut after {limited} steps"
        assert world.assigned_by_mic == ids("a", "c")


def test_an_unknown_target_fails_nothing() -> None:
    """Before ARM has answered, no identity is reported as failing."""
    assert target_state.failing(run(wants=["a"]).state) == ()
    assert ArmState() == ArmState(frozenset())


@pytest.mark.parametrize("refused", [False, True])
def test_what_is_being_taken_off_is_not_relied_on(*, refused: bool) -> None:
    """A pod made again while its identity's removal is under way waits until the identity is back."""
    world = run(wants=["a", "b"])
    world.until(world.now + 10)
    world.want("b")
    step = next_step.next_step(world.state, world.now)
    while not isinstance(step, Send):
        world.step()
        step = next_step.next_step(world.state, world.now)
    under_way = next_step.want(outcomes.patch_started(world.state, step, world.now), ids("a", "b"), world.now)
    message = target_state.usable_state(under_way)
    assert message is not None
    assert message.identities == ids("b")
    if refused:
        following = outcomes.step_failed(under_way, step, BROKEN, world.now)
    else:
        following = outcomes.patch_done(under_way, step, ArmState(ids("b")), world.now)
    message = target_state.usable_state(following)
    assert message is not None
    assert message.identities == (ids("a", "b") if refused else ids("b"))


def test_before_the_first_answer_nothing_is_relied_on() -> None:
    """Before ARM's first answer MIC relies on nothing, since it does not know what is on the target."""
    assert target_state.usable_state(run(wants=["a"]).state) is None
