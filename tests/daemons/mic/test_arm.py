"""MIC as `daemon` puts it together, between a real Kubernetes API (the lab's) and an ARM on a socket, with faults."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest

import make
from daemons.mic import conftest as worlds
from daemons.mic.arm import Fault, StandInArm
from podidentity.azure import reloading
from podidentity.azure.reloading import ReloadedConfig
from podidentity.core import arm as ids
from podidentity.kube.api import Api
from podidentity.lab.kubernetes import Kubernetes
from podidentity.mic.daemon import Mic
from podidentity.mic.settings import Settings
from podidentity.serving import metrics

SCALE_SET = make.target()


class Story:
    """A running MIC, its world and its Azure."""

    def __init__(self, world: worlds.World, arm: StandInArm, config: Path) -> None:
        self.world = world
        self.arm = arm
        self.config = config
        self.mic: Mic

    def name_identities(self, *names: str) -> None:
        """Create identities, and bindings that give them all to pods with the label `reader`."""
        self.world.add(*(make.identity(name) for name in names))
        self.world.add(*(make.binding(name, azure_identity=name) for name in names))

    async def until_states(self, **states: str) -> None:
        """Wait until the assigned identities of pod `web` stand so; by identity."""
        wanted = {f"web-default-{name}": state for name, state in states.items()}
        await self.world.until(lambda: self.world.states() == wanted, f"{wanted}")

    def metric(self, line: str) -> bool:
        """Whether the metrics page has a line that begins so."""
        return any(one.startswith(line) for one in metrics.render(self.mic._registry).decode().splitlines())


Run = Callable[[Callable[[Story], Awaitable[None]]], None]


@pytest.fixture
def run(definitions: list[dict[str, Any]], tmp_path: Path, unused_ports: tuple[int, int]) -> Run:
    """Run a story with a fresh cluster, a fresh Azure and a MIC between them."""

    async def play(story: Callable[[Story], Awaitable[None]]) -> None:
        world, arm = worlds.World(Kubernetes(worlds.NoLogs()), worlds.Machines()), StandInArm()
        async with worlds.served(world) as http, arm.listening(), httpx2.AsyncClient(trust_env=False) as azure:
            for definition in definitions:
                await http.post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", json=definition)
            path, environ = arm.write_config(tmp_path)
            told = Story(world, arm, Path(path))
            settings = Settings(probe_port=unused_ports[0], prometheus_port=unused_ports[1])
            told.mic = Mic(settings, ReloadedConfig(path, environ), Api(http), Api(http))
            arm.machine(SCALE_SET)
            running = asyncio.create_task(told.mic.run(azure))
            try:
                await story(told)
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)

    return lambda story: asyncio.run(play(story))


def test_a_burst_costs_one_token_one_get_and_one_patch_for_each_scale_set(run: Run) -> None:
    """However many pods and identities; the token is fetched once for all targets."""

    async def story(told: Story) -> None:
        others = [make.target(f"ss{number}") for number in range(4)]
        for target in others:
            told.arm.machine(target)
        told.world.add(*(make.node(f"n{number}", f"ss{number}") for number in range(4)))
        told.name_identities("a", "b", "c")
        told.world.add(*(make.pod(f"p{number}", node=f"n{number % 4}") for number in range(20)))
        await told.world.until(lambda: list(told.world.states().values()) == ["Assigned"] * 60, "60 Assigned")
        for target in others:
            assert told.arm.carried(target) == {"a", "b", "c"}
            assert len(told.arm.calls("GET", target)) == 1
            assert len(told.arm.calls("PATCH", target)) == 1
        assert [form["scope"] for form in told.arm.tokens] == [f"{told.arm.base}//.default"]
        prefix = "aadpodidentity_cloud_provider_operations"
        assert told.metric(f'{prefix}_duration_seconds_count{{operation_type="vmss_get"}} 4')
        assert told.metric(f'{prefix}_errors_count{{operation_type="vmss_update"}} 0')

    run(story)


def test_a_hanging_patch_delays_neither_others_nor_its_own_scale_sets_settled_pods(run: Run) -> None:
    """Whose identity is there already is Assigned at once; the rest when Azure is done."""

    async def story(told: Story) -> None:
        slow = told.arm.machine(SCALE_SET)
        told.arm.machine(make.target("quick"))
        told.world.add(make.node(), make.node("n2", "quick"), make.identity(), make.binding())
        told.world.add(make.pod())
        await told.until_states(reader="Assigned")
        slow.gate = asyncio.Event()
        told.world.add(make.identity("new"), make.binding("new", azure_identity="new", selector="new"))
        told.world.add(make.pod("waits", selector="new"))
        await told.world.until(lambda: len(told.arm.calls("PATCH", SCALE_SET)) == 2, "the hanging PATCH")
        told.world.add(make.pod("neighbour"), make.pod("elsewhere", node="n2", selector="new"))
        await told.world.until(lambda: list(told.world.states().values()).count("Assigned") == 3, "the others")
        assert told.world.states()["waits-default-new"] == "Created"
        slow.gate.set()
        await told.world.until(lambda: told.world.states()["waits-default-new"] == "Assigned", "the last")

    run(story)


def test_retry_after_is_obeyed_with_one_further_patch(run: Run) -> None:
    """And pods that come meanwhile do not shorten it."""

    async def story(told: Story) -> None:
        told.arm.patches.append(Fault(429, "TooManyRequests", "slow down", {"Retry-After": "1"}))
        told.world.add(make.node(), make.identity(), make.binding(), make.pod())
        await told.world.until(lambda: told.arm.calls("PATCH"), "the first PATCH")
        told.world.add(make.identity("b"), make.binding("b", azure_identity="b"))
        await told.until_states(reader="Assigned", b="Assigned")
        first, second = (at for at, method, _, _ in told.arm.log if method == "PATCH")
        assert second - first >= 1
        assert len(told.arm.calls("GET")) == 1

    run(story)


def test_a_missing_role_harms_nobody_else_and_a_touch_ends_it(run: Run) -> None:
    """The others are there after one extra round; the event says what to grant; an annotation makes MIC try again."""

    async def story(told: Story) -> None:
        told.arm.refused = {make.resource_id("b").lower()}
        told.world.add(make.node())
        told.name_identities("a", "b", "c")
        told.world.add(make.pod())
        await told.until_states(a="Assigned", b="Created", c="Assigned")
        assert len(told.arm.calls("PATCH")) == 2
        grant = f"grant Managed Identity Operator on {make.resource_id('b')} to object ID mic-object"
        await told.world.until(
            lambda: any(grant in one["message"] for one in told.world.kubernetes.storage.list("events")), "the event"
        )
        assert told.metric('aadpodidentity_mic_failing_identities{reason="LinkedAuthorizationFailed"} 1')
        told.arm.refused = set()

        def annotate(obj: dict[str, Any]) -> None:
            obj["metadata"]["annotations"] = {"touched": "yes"}

        told.world.kubernetes.storage.change("azureidentities.aadpodidentity.k8s.io", "default", "b", annotate)
        await told.until_states(a="Assigned", b="Assigned", c="Assigned")
        assert told.metric('aadpodidentity_mic_failing_identities{reason="LinkedAuthorizationFailed"} 0')

    run(story)


def test_a_culprit_that_arm_does_not_name_is_found(run: Run) -> None:
    """By halving; the others are assigned."""

    async def story(told: Story) -> None:
        told.arm.how = "vague"
        told.arm.refused = {make.resource_id("b").lower()}
        told.world.add(make.node())
        told.name_identities("a", "b", "c", "d")
        told.world.add(make.pod())
        await told.until_states(a="Assigned", b="Created", c="Assigned", d="Assigned")
        assert len(told.arm.calls("PATCH")) <= 5

    run(story)


@pytest.mark.parametrize("where", ["patches", "gets", "operation_errors"])
def test_what_passes_is_retried(run: Run, where: str) -> None:
    """A 500 for a PATCH or a GET, or an operation that fails."""

    async def story(told: Story) -> None:
        getattr(told.arm, where).append(Fault(500, "InternalServerError", "oh"))
        told.world.add(make.node(), make.identity(), make.binding(), make.pod())
        await told.until_states(reader="Assigned")
        assert not getattr(told.arm, where)

    run(story)


def test_a_revoked_token_is_replaced(run: Run) -> None:
    """ARM says 401 once; nobody waits for a back-off."""

    async def story(told: Story) -> None:
        told.arm.revoked = True
        told.world.add(make.node(), make.identity(), make.binding(), make.pod())
        await told.until_states(reader="Assigned")
        assert len(told.arm.tokens) == 2

    run(story)


def test_what_is_going_or_gone_gets_no_patch(run: Run) -> None:
    """A scale set under deletion, and a VM that does not exist."""

    async def story(told: Story) -> None:
        told.arm.machine(SCALE_SET).state = "Deleting"
        told.world.add(make.node(), make.node("vm-1", ""), make.identity(), make.binding())
        told.world.add(make.pod(), make.pod("lost", node="vm-1"))
        vm = ids.virtual_machine(make.SUBSCRIPTION, make.GROUP, "vm-1")
        await told.world.until(
            lambda: told.arm.calls("GET", SCALE_SET) and told.arm.calls("GET", vm) and len(told.world.states()) == 2,
            "both were looked at",
        )
        await told.world.until(lambda: ("Warning", "binding apply error") in told.world.events(), "the event")
        assert set(told.world.states().values()) == {"Created"}
        assert told.arm.calls("PATCH") == []

    run(story)


def test_the_system_assigned_and_foreign_identities_survive(run: Run) -> None:
    """MIC comes and goes; what was there before is there after."""

    async def story(told: Story) -> None:
        machine = told.arm.machine(SCALE_SET)
        machine.system = True
        machine.identities[make.resource_id("foreign").lower()] = "client-of-foreign"
        told.world.add(make.node(), make.identity(), make.binding(), make.pod())
        await told.until_states(reader="Assigned")
        assert (told.arm.carried(SCALE_SET), machine.system) == ({"foreign", "reader"}, True)
        told.world.remove_pod(make.pod())
        await told.world.until(lambda: told.arm.carried(SCALE_SET) == {"foreign"}, "removal")
        assert machine.system
        del machine.identities[make.resource_id("foreign").lower()]
        told.world.add(make.pod())
        await told.until_states(reader="Assigned")
        told.world.remove_pod(make.pod())
        await told.world.until(lambda: not told.arm.carried(SCALE_SET) and not told.world.states(), "removal")
        assert machine.system

    run(story)


def test_an_identity_unassigned_by_hand_stops_nothing(run: Run) -> None:
    """The pod goes, its object goes."""

    async def story(told: Story) -> None:
        told.world.add(make.node(), make.identity(), make.binding(), make.pod())
        await told.until_states(reader="Assigned")
        told.arm.machine(SCALE_SET).identities.clear()
        told.world.remove_pod(make.pod())
        await told.until_states()

    run(story)


def test_a_rotated_secret_is_used_and_a_broken_file_is_not(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No restart; one warning."""
    monkeypatch.setattr(reloading, "LOOK_SECONDS", 0.02)

    async def story(told: Story) -> None:
        good = told.config.read_text()
        told.config.write_text("{")
        await told.world.until(lambda: "azure.json changed and is not used" in caplog.text, "the warning")
        told.arm.secret = "second"
        told.config.write_text(json.dumps(json.loads(good) | {"aadClientSecret": "second"}))
        await told.world.until(lambda: told.mic._config.current.client_secret == "second", "the new secret")
        told.world.add(make.node(), make.identity(), make.binding(), make.pod())
        await told.until_states(reader="Assigned")
        assert caplog.text.count("is not used") == 1
        assert caplog.text.count("without TLS") >= 1

    with caplog.at_level("WARNING"):
        run(story)


def test_another_resource_group_in_azure_json_moves_nodes_without_provider_id(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What decisions depend on is planned anew."""
    monkeypatch.setattr(reloading, "LOOK_SECONDS", 0.02)

    async def story(told: Story) -> None:
        vm = ids.virtual_machine(make.SUBSCRIPTION, "elsewhere", "vm-1")
        told.arm.machine(vm)
        told.world.add(make.node("vm-1", ""), make.identity(), make.binding(), make.pod(node="vm-1"))
        await told.until_states(reader="Created")
        told.config.write_text(json.dumps(json.loads(told.config.read_text()) | {"resourceGroup": "elsewhere"}))
        await told.until_states(reader="Assigned")
        assert told.arm.carried(vm) == {"reader"}

    run(story)
