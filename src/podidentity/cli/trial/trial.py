"""The trial itself, step by step: creates, looks, removes, says what it found; removes also what a failure leaves."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import httpx2

from podidentity.cli.daemon_settings import read_settings
from podidentity.cli.trial import objects
from podidentity.cli.trial.objects import Names, PodAnswer
from podidentity.cli.trial.subscription import Subscription
from podidentity.core.model.arm import Target, target_of
from podidentity.core.model.identities import AssignedState, ObjectKey
from podidentity.core.report.diagnosing import Daemon
from podidentity.core.report.findings import Finding, ok, problem
from podidentity.errors import AzureError, HostError, KubernetesError, NotFoundError
from podidentity.kube import resources
from podidentity.kube.api import Api
from podidentity.kube.installation import find_daemons
from podidentity.timing import SYSTEM_CLOCK, Clock

POLL_SECONDS = 1.0
OK, BAD_REQUEST = 200, 400
_EXPECTED_ERRORS = (KubernetesError, AzureError, HostError)


class StopError(Exception):
    """The trial cannot go on; the finding says why."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.message)
        self.finding = finding


@dataclass(slots=True)
class Trial:
    """One trial. `http` is the client of the Kubernetes API; `tell` gets each finding as soon as there is one."""

    api: Api
    http: httpx2.AsyncClient
    subscription: Subscription
    names: Names
    audience: str
    image: str = ""
    step_seconds: float = 300.0
    clock: Clock = SYSTEM_CLOCK
    tell: Callable[[Finding], None] = lambda _: None
    findings: list[Finding] = field(default_factory=list)
    client_id: str = ""
    remnants: list[str] = field(default_factory=list)
    """What has to be removed, the last first: also what may or may not have come to be."""

    async def run(self, *, keep: bool = False) -> tuple[Finding, ...]:
        """Return what was found. Nothing of the trial remains, unless it is to be kept or cannot be removed."""
        step = "sign-in"
        try:
            location = await self.subscription.location()
            self._add(ok(step, f"the resource group is in {location}"))
            for step, act in self._steps(location):  # noqa: B007  # an error is a finding on its step
                await act()
        except StopError as stop:
            self._add(stop.finding)
        except _EXPECTED_ERRORS as error:
            self._add(problem(step, str(error)))
        finally:
            if keep:
                self._add(ok("removed", f"nothing: namespace and identity {self.names.name} are kept"))
            else:
                await self._remove()
        return tuple(self.findings)

    def _steps(self, location: str) -> tuple[tuple[str, Callable[[], Awaitable[None]]], ...]:
        return (
            ("installation", self._look_at_installation),
            ("identity", lambda: self._create_identity(location)),
            ("objects", self._create_objects),
            ("assigned", self._wait_until_assigned),
            ("token", self._judge_token),
            ("machine", self._look_at_machine),
            ("neighbour", self._judge_neighbour),
            ("taken off", self._take_binding_away),
        )

    async def _look_at_installation(self) -> None:
        mics, nmis = await find_daemons(self.api, "mic"), await find_daemons(self.api, "nmi")
        ready = [daemon for daemon in nmis if daemon.ready]
        if read_settings(mics, nmis).managed_mode:
            message = "NMI is in managed mode, where nobody puts identities on machines"
            raise StopError(problem("installation", message, "verify an installation in standard mode"))
        if not ready or not any(daemon.ready for daemon in mics):
            missing = "NMI" if not ready else "MIC"
            raise StopError(problem("installation", f"no pod of {missing} is ready", "podidentity doctor"))
        self.image = self.image or ready[0].image
        self._add(ok("installation", f"MIC and {_count(ready)} of NMI are ready; {ready[0].image}"))

    async def _create_identity(self, location: str) -> None:
        self.remnants.insert(0, "identity")
        self.client_id = await self.subscription.create_identity(self.names.name, location)
        self._add(ok("identity", f"created {self.subscription.resource_id(self.names.name)}"))

    async def _create_objects(self) -> None:
        names = self.names
        self.remnants.insert(0, "namespace")
        resource_id = self.subscription.resource_id(names.name)
        await self.api.create(resources.NAMESPACES.as_json(), objects.namespace(names, resource_id))
        identity = objects.identity(names, resource_id, self.client_id)
        await self.api.create(resources.IDENTITIES.as_json(), identity)
        await self.api.create(resources.BINDINGS.as_json(), objects.binding(names))
        pod = objects.pod(names.asking_pod, self.image, self.audience, selector=names.name)
        await self.api.create(resources.PODS.as_json(), pod)
        self._add(ok("objects", f"created namespace {names.name} with an identity, a binding and a pod"))

    async def _wait_until_assigned(self) -> None:
        seconds = await self._until("assigned", "the identity was not Assigned", self._is_assigned)
        self._add(ok("assigned", f"Assigned after {seconds:.0f} s"))

    async def _is_assigned(self) -> bool:
        items = (await self.api.list(resources.ASSIGNED_IDENTITIES)).values
        return any(item.pod == self.names.asking_pod and item.state == AssignedState.ASSIGNED for item in items)

    async def _judge_token(self) -> None:
        answer = await self._answer_of("token", self.names.asking_pod)
        if answer.status != OK:
            raise StopError(
                problem("token", f"the pod was answered {answer.status}: {answer.error}", "podidentity doctor")
            )
        if answer.client_id.lower() != self.client_id:
            message = f"the pod got a token of {answer.client_id}, and its identity is {self.client_id}"
            raise StopError(problem("token", message, "stop using this installation, and report it: SECURITY.md"))
        self._add(ok("token", f"a token of the pod's own identity after {answer.seconds:g} s"))
        if answer.without_header != BAD_REQUEST:
            self._add(problem("header", f"a request without Metadata: true was answered {answer.without_header}"))
        else:
            self._add(ok("header", "a request without Metadata: true is refused"))

    async def _look_at_machine(self) -> None:
        target = await self._target()
        if not await self.subscription.is_on(self.names.name, target):
            raise StopError(problem("machine", f"ARM does not have the identity on {target}", "see MIC's log"))
        self._add(ok("machine", f"ARM has the identity on {target}"))

    async def _target(self) -> Target:
        pod = await self.api.get(resources.PODS, self.names.asking_pod)
        node = await self.api.get(resources.NODES, ObjectKey("", pod.node))
        return target_of(node.name, node.provider_id, "", "")

    async def _judge_neighbour(self) -> None:
        # Only now, and on the same node: before the identity is on the machine, IMDS itself would refuse the pod, and
        # an interception that does not hold would look as if it did.
        node = (await self.api.get(resources.PODS, self.names.asking_pod)).node
        pod = objects.pod(self.names.other_pod, self.image, self.audience, selector="", node=node)
        await self.api.create(resources.PODS.as_json(), pod)
        answer = await self._answer_of("neighbour", self.names.other_pod)
        if answer.status == OK:
            message = f"a pod without a binding got a token of {answer.client_id}"
            raise StopError(problem("neighbour", message, "interception does not hold on its node: podidentity doctor"))
        self._add(ok("neighbour", f"a pod of the same node without a binding gets none: {answer.status}"))

    async def _take_binding_away(self) -> None:
        target = await self._target()
        await self.api.delete(resources.BINDINGS, ObjectKey(self.names.name, self.names.name))

        async def is_off() -> bool:
            return not await self.subscription.is_on(self.names.name, target)

        seconds = await self._until("taken off", f"the identity is still on {target}", is_off)
        self._add(ok("taken off", f"the identity left {target} {seconds:.0f} s after its binding"))

    async def _answer_of(self, check: str, key: ObjectKey) -> PodAnswer:
        """Return what a pod was answered, once it has ended."""

        async def has_ended() -> bool:
            return not (await self.api.get(resources.PODS, key)).live

        await self._until(check, f"pod {key} did not come to an end", has_ended)
        log = await self.http.get(f"/api/v1/namespaces/{key.namespace}/pods/{key.name}/log")
        answer = objects.read_answer(log.text) if log.is_success else None
        if answer is None:
            text = " ".join(log.text.split())[-300:]
            raise StopError(
                problem(check, f"pod {key} did not say what it was answered: {text}", "use --keep, and look")
            )
        return answer

    async def _until(self, check: str, failure: str, is_done: Callable[[], Awaitable[bool]]) -> float:
        """Wait until something is so, and return after how many seconds; stop the trial when that takes too long."""
        start = self.clock.steady()
        while not await is_done():
            if self.clock.steady() - start >= self.step_seconds:
                message = f"{failure} within {self.step_seconds:g} s"
                raise StopError(problem(check, message, "podidentity explain --all; the events of the binding"))
            await self.clock.sleep(POLL_SECONDS)
        return self.clock.steady() - start

    async def _remove(self) -> None:
        """Remove what was created, in an order in which MIC takes the identity off the machine first."""
        remains = []
        removals = {"namespace": self._remove_namespace, "identity": self._remove_identity}
        for name in self.remnants:
            try:
                await removals[name]()
            except _EXPECTED_ERRORS as error:
                remains.append(f"{name} {self.names.name} ({error})")
        if remains:
            resource_id = self.subscription.resource_id(self.names.name)
            todo = f"kubectl delete namespace {self.names.name}; az identity delete --ids {resource_id}"
            self._add(problem("removed", f"not removed: {'; '.join(remains)}", todo))
        else:
            self._add(ok("removed", "nothing of this trial is left"))

    async def _remove_namespace(self) -> None:
        key = ObjectKey("", self.names.name)
        try:
            await self.api.delete(resources.NAMESPACES, key)
        except NotFoundError:
            return
        start = self.clock.steady()
        while self.clock.steady() - start < self.step_seconds:
            try:
                await self.api.get(resources.NAMESPACES, key)
            except NotFoundError:
                return
            await self.clock.sleep(POLL_SECONDS)
        raise KubernetesError(f"it is still there after {self.step_seconds:g} s")

    async def _remove_identity(self) -> None:
        await asyncio.shield(self.subscription.delete_identity(self.names.name))

    def _add(self, finding: Finding) -> None:
        self.findings.append(finding)
        self.tell(finding)


def _count(daemons: list[Daemon]) -> str:
    return f"{len(daemons)} pod{'' if len(daemons) == 1 else 's'}"
