"""MIC as `wiring` assembles it, between a real Kubernetes API (the lab's) and an ARM on a socket, with faults."""

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
from podidentity.core.model import arm as ids
from podidentity.kube.api import Api
from podidentity.mic.lifecycle import Lifecycle
from podidentity.mic.settings import Settings
from podidentity.mic.wiring import Mic, assemble
from podidentity.serving import metrics
from podidentity_lab.kubernetes import Kubernetes

SCALE_SET = make.target()


class Setting:
    """A running MIC with its cluster and its Azure."""

    def __init__(
        self, world: worlds.World, arm: StandInArm, config_file: Path, config: ReloadedConfig, mic: Mic
    ) -> None:
        self.world = world
        self.arm = arm
        self.config_file = config_file
        self.config = config
        self.mic = mic

    def name_identities(self, *names: str) -> None:
        """Create identities, and bindings that give them all to pods with the label `reader`."""
        self.world.add(*(make.identity(name) for name in names))
        self.world.add(*(make.binding(name, azure_identity=name) for name in names))

    async def until_states(self, **states: str) -> None:
        """Wait until the assigned identities of pod `web` have these states, by name of the identity."""
        expected_states = {f"web-default-{name}": state for name, state in states.items()}
        await self.world.until(lambda: self.world.states() == expected_states, f"{expected_states}")

    def metric(self, line: str) -> bool:
        """Whether the metrics page has a line that begins with a text."""
        return any(row.startswith(line) for row in metrics.render(self.mic.registry).decode().splitlines())


Run = Callable[[Callable[[Setting], Awaitable[None]]], Awaitable[None]]


@pytest.fixture
def run(definitions: list[dict[str, Any]], tmp_path: Path, unused_ports: tuple[int, int]) -> Run:
    """Run a story with a fresh cluster, a fresh Azure and a MIC between them."""

    async def play(story: Callable[[Setting], Awaitable[None]]) -> None:
        world, arm = worlds.World(Kubernetes(worlds.NoLogs()), worlds.Machines()), StandInArm()
        async with worlds.serve_api(world) as http, arm.listening(), httpx2.AsyncClient(trust_env=False) as azure:
            for definition in definitions:
                await http.post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", json=definition)
            path, environ = arm.write_config(tmp_path)
            settings = Settings(probe_port=unused_ports[0], prometheus_port=unused_ports[1])
            config, mic = ReloadedConfig(path, environ), assemble(settings, Api(http), Api(http))
            arm.machine(SCALE_SET)
            task = asyncio.create_task(Lifecycle(mic, config, azure).run())
            try:
                await story(Setting(world, arm, Path(path), config, mic))
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    return play


async def test_a_burst_costs_one_token_one_get_and_one_patch_for_each_scale_set(run: Run) -> None:
    """The number of pods and identities does not matter, and one token serves all targets."""

    async def story(mic: Setting) -> None:
        targets = [make.target(f"ss{number}") for number in range(4)]
        for target in targets:
            mic.arm.machine(target)
        mic.world.add(*(make.node(f"n{number}", f"ss{number}") for number in range(4)))
        mic.name_identities("a", "b", "c")
        mic.world.add(*(make.pod(f"p{number}", node=f"n{number % 4}") for number in range(20)))
        await mic.world.until(lambda: list(mic.world.states().values()) == ["Assigned"] * 60, "60 Assigned")
        for target in targets:
            assert mic.arm.names_on(target) == {"a", "b", "c"}
            assert len(mic.arm.calls("GET", target)) == 1
            assert len(mic.arm.calls("PATCH", target)) == 1
        assert [form["scope"] for form in mic.arm.tokens] == [f"{mic.arm.base}//.default"]
        prefix = "aadpodidentity_cloud_provider_operations"
        assert mic.metric(f'{prefix}_duration_seconds_count{{operation_type="vmss_get"}} 4')
        assert mic.metric(f'{prefix}_errors_count{{operation_type="vmss_update"}} 0')

    await run(story)


async def test_a_hanging_patch_delays_neither_others_nor_its_own_scale_sets_settled_pods(run: Run) -> None:
    """A pod whose identity is on its scale set is Assigned at once, the others when Azure is done."""

    async def story(mic: Setting) -> None:
        slow = mic.arm.machine(SCALE_SET)
        mic.arm.machine(make.target("quick"))
        mic.world.add(make.node(), make.node("n2", "quick"), make.identity(), make.binding())
        mic.world.add(make.pod())
        await mic.until_states(reader="Assigned")
        slow.gate = asyncio.Event()
        mic.world.add(make.identity("new"), make.binding("new", azure_identity="new", selector="new"))
        mic.world.add(make.pod("waits", selector="new"))
        await mic.world.until(lambda: len(mic.arm.calls("PATCH", SCALE_SET)) == 2, "the hanging PATCH")
        mic.world.add(make.pod("neighbour"), make.pod("elsewhere", node="n2", selector="new"))
        await mic.world.until(lambda: list(mic.world.states().values()).count("Assigned") == 3, "the others")
        assert mic.world.states()["waits-default-new"] == "Created"
        slow.gate.set()
        await mic.world.until(lambda: mic.world.states()["waits-default-new"] == "Assigned", "the last")

    await run(story)


async def test_retry_after_is_obeyed_with_one_further_patch(run: Run) -> None:
    """MIC waits as long as ARM says, also when new pods come meanwhile."""

    async def story(mic: Setting) -> None:
        mic.arm.patches.append(Fault(429, "TooManyRequests", "slow down", {"Retry-After": "1"}))
        mic.world.add(make.node(), make.identity(), make.binding(), make.pod())
        await mic.world.until(lambda: mic.arm.calls("PATCH"), "the first PATCH")
        mic.world.add(make.identity("b"), make.binding("b", azure_identity="b"))
        await mic.until_states(reader="Assigned", b="Assigned")
        first, second = (time for time, method, _, _ in mic.arm.log if method == "PATCH")
        assert second - first >= 1
        assert len(mic.arm.calls("GET")) == 1

    await run(story)


async def test_a_missing_role_harms_nobody_else_and_a_touch_ends_it(run: Run) -> None:
    """The others need one extra PATCH, the event says what to grant, and an annotation makes MIC try again."""

    async def story(mic: Setting) -> None:
        mic.arm.refused_identities = {make.resource_id("b").lower()}
        mic.world.add(make.node())
        mic.name_identities("a", "b", "c")
        mic.world.add(make.pod())
        await mic.until_states(a="Assigned", b="Created", c="Assigned")
        assert len(mic.arm.calls("PATCH")) == 2
        grant = f"grant Managed Identity Operator on {make.resource_id('b')} to object ID mic-object"
        await mic.world.until(
            lambda: any(grant in event["message"] for event in mic.world.kubernetes.storage.list("events")), "the event"
        )
        assert mic.metric('aadpodidentity_mic_failing_identities{reason="LinkedAuthorizationFailed"} 1')
        mic.arm.refused_identities = set()

        def annotate(obj: dict[str, Any]) -> None:
            obj["metadata"]["annotations"] = {"touched": "yes"}

        mic.world.kubernetes.storage.change("azureidentities.aadpodidentity.k8s.io", "default", "b", annotate)
        await mic.until_states(a="Assigned", b="Assigned", c="Assigned")
        assert mic.metric('aadpodidentity_mic_failing_identities{reason="LinkedAuthorizationFailed"} 0')

    await run(story)


async def test_a_culprit_that_arm_does_not_name_is_found(run: Run) -> None:
    """MIC finds the refused identity by halving what it sends, and assigns the others."""

    async def story(mic: Setting) -> None:
        mic.arm.refusal_style = "vague"
        mic.arm.refused_identities = {make.resource_id("b").lower()}
        mic.world.add(make.node())
        mic.name_identities("a", "b", "c", "d")
        mic.world.add(make.pod())
        await mic.until_states(a="Assigned", b="Created", c="Assigned", d="Assigned")
        assert len(mic.arm.calls("PATCH")) <= 5

    await run(story)


@pytest.mark.parametrize("fault_queue", ["patches", "gets", "operation_errors"])
async def test_what_passes_is_retried(run: Run, fault_queue: str) -> None:
    """A 500 for a PATCH or a GET, or a failed operation, is retried until it succeeds."""

    async def story(mic: Setting) -> None:
        getattr(mic.arm, fault_queue).append(Fault(500, "InternalServerError", "oh"))
        mic.world.add(make.node(), make.identity(), make.binding(), make.pod())
        await mic.until_states(reader="Assigned")
        assert not getattr(mic.arm, fault_queue)

    await run(story)


async def test_a_revoked_token_is_replaced(run: Run) -> None:
    """After a 401 from ARM, MIC gets a new token and goes on."""

    async def story(mic: Setting) -> None:
        mic.arm.revoked = True
        mic.world.add(make.node(), make.identity(), make.binding(), make.pod())
        await mic.until_states(reader="Assigned")
        assert len(mic.arm.tokens) == 2

    await run(story)


async def test_what_is_going_or_gone_gets_no_patch(run: Run) -> None:
    """Neither a scale set that is being deleted nor a VM that does not exist is sent a PATCH."""

    async def story(mic: Setting) -> None:
        mic.arm.machine(SCALE_SET).state = "Deleting"
        mic.world.add(make.node(), make.node("vm-1", ""), make.identity(), make.binding())
        mic.world.add(make.pod(), make.pod("lost", node="vm-1"))
        vm = ids.virtual_machine(make.SUBSCRIPTION, make.GROUP, "vm-1")
        await mic.world.until(
            lambda: mic.arm.calls("GET", SCALE_SET) and mic.arm.calls("GET", vm) and len(mic.world.states()) == 2,
            "both were looked at",
        )
        await mic.world.until(lambda: ("Warning", "binding apply error") in mic.world.events(), "the event")
        assert set(mic.world.states().values()) == {"Created"}
        assert mic.arm.calls("PATCH") == []

    await run(story)


async def test_the_system_assigned_and_foreign_identities_survive(run: Run) -> None:
    """Identities that MIC did not assign, the system-assigned one among them, stay when MIC's own come and go."""

    async def story(mic: Setting) -> None:
        machine = mic.arm.machine(SCALE_SET)
        machine.system = True
        machine.identities[make.resource_id("foreign").lower()] = "client-of-foreign"
        mic.world.add(make.node(), make.identity(), make.binding(), make.pod())
        await mic.until_states(reader="Assigned")
        assert (mic.arm.names_on(SCALE_SET), machine.system) == ({"foreign", "reader"}, True)
        mic.world.remove_pod(make.pod())
        await mic.world.until(lambda: mic.arm.names_on(SCALE_SET) == {"foreign"}, "removal")
        assert machine.system
        del machine.identities[make.resource_id("foreign").lower()]
        mic.world.add(make.pod())
        await mic.until_states(reader="Assigned")
        mic.world.remove_pod(make.pod())
        await mic.world.until(lambda: not mic.arm.names_on(SCALE_SET) and not mic.world.states(), "removal")
        assert machine.system

    await run(story)


async def test_an_identity_unassigned_by_hand_stops_nothing(run: Run) -> None:
    """The assigned identity is deleted with its pod, though its identity was removed from the scale set by hand."""

    async def story(mic: Setting) -> None:
        mic.world.add(make.node(), make.identity(), make.binding(), make.pod())
        await mic.until_states(reader="Assigned")
        mic.arm.machine(SCALE_SET).identities.clear()
        mic.world.remove_pod(make.pod())
        await mic.until_states()

    await run(story)


async def test_a_rotated_secret_is_used_and_a_broken_file_is_not(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """MIC uses the new secret without a restart, and warns once of a file that it cannot read."""
    monkeypatch.setattr(reloading, "LOOK_SECONDS", 0.02)

    async def story(mic: Setting) -> None:
        good = mic.config_file.read_text()
        mic.config_file.write_text("{")
        await mic.world.until(lambda: "azure.json changed and is not used" in caplog.text, "the warning")
        mic.arm.secret = "second"
        mic.config_file.write_text(json.dumps(json.loads(good) | {"aadClientSecret": "second"}))
        await mic.world.until(lambda: mic.config.current.client_secret == "second", "the new secret")
        mic.world.add(make.node(), make.identity(), make.binding(), make.pod())
        await mic.until_states(reader="Assigned")
        assert caplog.text.count("is not used") == 1
        assert caplog.text.count("without TLS") >= 1

    with caplog.at_level("WARNING"):
        await run(story)


async def test_another_resource_group_in_azure_json_moves_nodes_without_provider_id(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the changed file a new term begins, which finds the VM in the new resource group."""
    monkeypatch.setattr(reloading, "LOOK_SECONDS", 0.02)

    async def story(mic: Setting) -> None:
        vm = ids.virtual_machine(make.SUBSCRIPTION, "elsewhere", "vm-1")
        mic.arm.machine(vm)
        mic.world.add(make.node("vm-1", ""), make.identity(), make.binding(), make.pod(node="vm-1"))
        await mic.until_states(reader="Created")
        mic.config_file.write_text(json.dumps(json.loads(mic.config_file.read_text()) | {"resourceGroup": "elsewhere"}))
        await mic.until_states(reader="Assigned")
        assert mic.arm.names_on(vm) == {"reader"}

    await run(story)
