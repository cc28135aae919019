"""NMI that decides by itself: IMDS, beside MIC's reports, tells it which identities are on the machine."""

import asyncio
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

import make
from clocks import START_SECONDS, JumpingClock
from daemons.nmi.harness import TARGET, Answer, Serving, pod, serving
from daemons.nmi.imds import NOT_FOUND, ImdsRequest, Reply
from podidentity.core.model.identities import AssignedState, ObjectKey
from podidentity.core.model.machine_state import MachineState
from podidentity.kube.resources import StoredObject
from podidentity.kube.store import Store
from podidentity.nmi.access import MISSING_SECONDS, SETTLED_SECONDS
from podidentity.nmi.adapters.own_decision import OwnDecision, RuleStores
from podidentity.nmi.settings import Settings
from waiting import eventually

UNKNOWN = Reply(400, json.dumps(NOT_FOUND).encode())


class Machine:
    """The identities that IMDS knows on a node whose NMI decides by itself."""

    def __init__(self, nmi: Serving, *names: str) -> None:
        self.names = set(names)
        self._nmi = nmi
        nmi.cluster.decides = True
        nmi.imds.fault = self._answer

    def _answer(self, request: ImdsRequest) -> Reply | None:
        return None if request.query["msi_res_id"].rpartition("/")[2] in self.names else UNKNOWN

    def get(self, name: str) -> None:
        """Put an identity on the machine, and let MIC report it."""
        self.names.add(name)
        self._nmi.cluster.follower.identities_came(frozenset({make.identity_id(name)}))
        self._nmi.cluster.follower.anything_changed()


async def waits(nmi: Serving, requests: int, target: str = TARGET) -> "asyncio.Task[Answer]":
    """Ask, and return once IMDS has had so many requests in all and this one waits."""
    task = asyncio.create_task(nmi.ask(target))
    await eventually(lambda: len(nmi.imds.requests) == requests and waiting_requests(nmi) == 1, "the request waits")
    return task


def waiting_requests(nmi: Serving) -> float | None:
    """Return how many requests wait for the watch."""
    return nmi.registry.get_sample_value("aadpodidentity_nmi_waiting_requests")


async def test_an_identity_that_is_there_is_answered_with_at_once() -> None:
    """Without any report of MIC, a pod gets the token of an identity that IMDS knows, with one call."""
    async with serving() as nmi:
        Machine(nmi, "reader")
        nmi.cluster.add(pod(), make.identity())
        assert (await nmi.ask()).status == 200
        assert len(nmi.imds.requests) == 1


async def test_what_imds_does_not_know_is_waited_for_until_mic_says_that_it_is_there() -> None:
    """A request for a missing identity waits, and IMDS is asked again as soon as MIC reports the identity."""
    async with serving() as nmi:
        machine = Machine(nmi)
        nmi.cluster.add(pod(), make.identity())
        task = await waits(nmi, 1)
        machine.get("reader")
        answer = await task
        assert (answer.status, len(nmi.imds.requests)) == (200, 2)


async def test_without_mic_imds_is_asked_again() -> None:
    """IMDS is asked again for a missing identity after five seconds, and not when other things change on the node."""
    async with serving() as nmi:
        machine = Machine(nmi)
        nmi.cluster.add(pod(), make.identity())
        task = await waits(nmi, 1)
        for _ in range(5):
            nmi.cluster.notify()
            await asyncio.sleep(0)
        assert len(nmi.imds.requests) == 1
        machine.names.add("reader")
        nmi.clock.jump(MISSING_SECONDS)
        nmi.cluster.notify()
        assert (await task).status == 200
        assert len(nmi.imds.requests) == 2


@pytest.mark.parametrize(("header", "status"), [(False, 404), (True, 503)])
async def test_a_wait_in_vain_ends_as_it_does_with_mic(*, header: bool, status: int) -> None:
    """Once both waits are over the answer is 404, or with --set-retry-after-header 503 and Retry-After."""
    settings = Settings("n1", wait_known_seconds=0, wait_created_seconds=0, wait_assigned_seconds=0)
    async with serving(replace(settings, retry_after_header=header)) as nmi:
        Machine(nmi)
        nmi.cluster.add(pod(), make.identity())
        answer = await nmi.ask()
        assert "not yet on its node" in answer.json["error_description"]
        assert (answer.status, "retry-after" in answer.headers) == (status, header)
        assert len(nmi.imds.requests) == 1


async def test_another_identity_of_the_pod_answers_while_the_first_is_missing() -> None:
    """A pod that names no identity gets the first of its own that is there; an identity that it names is waited for."""
    async with serving() as nmi:
        machine = Machine(nmi, "two")
        nmi.cluster.add(pod(), make.identity("one"), make.identity("two"))
        assert (await nmi.ask()).token.startswith("token of two ")
        task = await waits(nmi, 2, f"{TARGET}&client_id=client-of-one")
        machine.get("one")
        assert (await task).token.startswith("token of one ")
        assert (await nmi.ask()).token.startswith("token of one ")


async def test_other_refusals_of_imds_are_passed_on_at_once() -> None:
    """Only an identity that is missing on the machine is waited for; other refusals are passed on at once."""
    async with serving() as nmi:
        Machine(nmi, "reader")
        nmi.cluster.add(pod(), make.identity())
        nmi.imds.script.append(Reply(400, b'{"error": "invalid_resource", "error_description": "AADSTS500011"}'))
        answer = await nmi.ask()
        assert (answer.status, answer.json["error_description"]) == (403, "AADSTS500011")


async def test_an_identity_that_was_deleted_in_azure_is_told_at_once() -> None:
    """An identity that MIC has long reported but IMDS does not know gets 403 in IMDS's words, without a wait."""
    async with serving() as nmi:
        Machine(nmi)
        nmi.cluster.machine[make.identity_id("reader")] = nmi.clock.steady()
        nmi.cluster.add(pod(), make.identity())
        nmi.clock.jump(SETTLED_SECONDS + 1)
        answer = await nmi.ask()
        assert (answer.status, answer.json["error_description"]) == (403, "Identity not found")
        assert waiting_requests(nmi) == 0


async def test_one_that_has_just_come_is_waited_for_until_it_has_settled() -> None:
    """IMDS may learn late of an identity that MIC has just reported: the request waits, and in the end gets 403."""
    async with serving(Settings("n1", wait_created_seconds=200)) as nmi:
        Machine(nmi)
        nmi.cluster.machine[make.identity_id("reader")] = nmi.clock.steady()
        nmi.cluster.add(pod(), make.identity())
        task = await waits(nmi, 1)
        nmi.clock.jump(SETTLED_SECONDS - 1)
        nmi.cluster.notify()
        await eventually(lambda: len(nmi.imds.requests) == 2 and waiting_requests(nmi) == 1, "it waits again")
        nmi.clock.jump(MISSING_SECONDS)
        nmi.cluster.notify()
        assert (await task).status == 403


async def test_what_azure_loses_for_a_moment_costs_a_pod_nothing() -> None:
    """While MIC puts a lost identity back, the pod keeps its token, and a new pod gets none."""
    async with serving(Settings("n1", wait_known_seconds=0, wait_created_seconds=0, wait_assigned_seconds=0)) as nmi:
        Machine(nmi, "reader")
        nmi.cluster.add(pod(), make.identity())
        token = (await nmi.ask()).token
        nmi.cluster.assign(nmi.cluster.pods[0], make.identity(), AssignedState.CREATED)
        assert (await nmi.ask()).token == token
        nmi.cluster.remove(nmi.cluster.pods[0])
        nmi.cluster.add(pod(uid="another"), make.identity(), state=AssignedState.CREATED)
        assert (await nmi.ask()).status == 404


def test_since_when_an_identity_is_there_is_counted_without_a_break() -> None:
    """An identity's time on the machine runs on while MIC reports others, and begins anew after it was gone."""
    clock = JumpingClock()
    decision = OwnDecision(SimpleNamespace(clock=clock), Settings("n1"), RuleStores(Store(), Store(), Store()))  # type: ignore[arg-type]
    key = ObjectKey("default", "machine")

    def mic_says(*names: str) -> list[float | None]:
        clock.jump(10)
        state = MachineState({make.identity_id(name): "" for name in names})
        decision.machines.upsert(StoredObject(key, "", str(clock.steady()), state))
        moments = (decision.there_since.get(make.identity_id(name)) for name in ("one", "two"))
        return [moment and moment - START_SECONDS for moment in moments]

    assert mic_says("one") == [10, None]
    assert mic_says("one", "two") == [10, 20]
    assert mic_says("two") == [None, 20]
    assert mic_says("one", "two") == [40, 20]
    decision.machines.remove(key)
    assert decision.there_since == {}
