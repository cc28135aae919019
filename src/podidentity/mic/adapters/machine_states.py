"""Tells NMI what is on each VM and scale set: one Lease for each (`core.model.machine_state`), written when it changes.

An object stays when MIC is gone: it is what NMI goes by then. Without one NMI asks IMDS. No write of a pod's waits for
these, and none of them is retried in haste: a role that forbids them, as upstream's does, is reported once.
"""

import asyncio
import logging
from collections.abc import Iterable, Mapping
from typing import Any

from podidentity.core.model import machine_state
from podidentity.core.model.arm import ArmState, Target, VirtualMachine
from podidentity.core.model.identities import ObjectKey
from podidentity.core.model.machine_state import LABEL, MachineState
from podidentity.core.model.policy import Policy
from podidentity.errors import ConflictError, ForbiddenError, KubernetesError, MalformedObjectError, NotFoundError
from podidentity.kube.api import Api, Selection
from podidentity.kube.resources import LEASES, StoredObject
from podidentity.mic.adapters.cluster import WatchedCluster

CONCURRENCY = 20
FIRST_RETRY_SECONDS = 1.0
LONGEST_RETRY_SECONDS = 30.0
HOLD_OFF_SECONDS = 600.0
"""How long a refusal stops the writes; roles are corrected while MIC runs."""

_log = logging.getLogger(__name__)


class ApiMachineStates:
    """The objects of one leader's term."""

    def __init__(self, api: Api, namespace: str, cluster: WatchedCluster, policy: Policy) -> None:
        self._api = api
        self._namespace = namespace
        self._cluster = cluster
        self._policy = policy
        self._desired: dict[str, tuple[MachineState, str]] = {}
        self._sources: dict[Target, tuple[ArmState, MachineState]] = {}
        self._in_use: frozenset[str] | None = None
        self._objects: dict[str, tuple[MachineState | None, str]] | None = None
        self._wake = asyncio.Event()
        self._has_warned = False

    def show(self, target: Target, state: ArmState) -> None:
        """Have written what is on a target. Never waits."""
        self._desired[self._name_of(target)] = self._machine_state(target, state), target.path
        self._wake.set()

    def replace_all(self, states: Mapping[Target, ArmState], targets: Iterable[Target]) -> None:
        """Have written what is on all targets, and removed what is about others than `targets`. Never waits.

        Of a target that is not followed any more nobody knows what is there: NMI is to ask IMDS then.
        """
        self._in_use = frozenset(map(self._name_of, targets))
        self._desired = {}
        self._sources = {target: self._sources[target] for target in states if target in self._sources}
        for target, state in states.items():
            self.show(target, state)
        self._wake.set()

    def _machine_state(self, target: Target, state: ArmState) -> MachineState:
        """Return what NMI is told: the same object for as long as ARM's is, because sorting thousands takes a while."""
        source, result = self._sources.get(target, (None, None))
        if source is not state or result is None:
            result = machine_state.machine_state(state, self._policy)
            self._sources[target] = state, result
        return result

    async def run(self) -> None:
        """Write and remove objects until cancelled."""
        pause_seconds = FIRST_RETRY_SECONDS
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                await self._write_all()
            except ForbiddenError as error:
                self._warn(error)
                await self._api.clock.sleep(HOLD_OFF_SECONDS)
                self._wake.set()
            except KubernetesError as error:
                _log.info("what is on machines is not written yet, trying again: %s", error)
                await self._api.clock.sleep(pause_seconds)
                pause_seconds = min(pause_seconds * 2, LONGEST_RETRY_SECONDS)
                self._wake.set()
            else:
                pause_seconds = FIRST_RETRY_SECONDS

    async def _write_all(self) -> None:
        """Write what differs. Raises KubernetesError, the first of several, once all were tried."""
        if self._objects is None:
            self._objects = await _load(self._api, self._namespace)
        objects = self._objects
        differences = [name for name, (state, _) in self._desired.items() if objects.get(name, (None, ""))[0] != state]
        leftovers = [] if self._in_use is None else [name for name in objects if name not in self._in_use]
        queue = iter([*((name, True) for name in differences), *((name, False) for name in leftovers)])
        errors: list[KubernetesError] = []

        async def work() -> None:
            for name, is_write in queue:
                try:
                    await (self._write(name, objects) if is_write else self._remove(name, objects))
                except (ConflictError, NotFoundError):
                    self._objects = None  # somebody else wrote or deleted it: read all of them anew
                    self._wake.set()
                except KubernetesError as error:
                    errors.append(error)

        async with asyncio.TaskGroup() as group:
            for _ in range(min(CONCURRENCY, len(differences) + len(leftovers))):
                group.create_task(work())
        if errors:
            raise errors[0]

    async def _write(self, name: str, objects: dict[str, tuple[MachineState | None, str]]) -> None:
        if name not in self._desired:
            return  # a plan has dropped it meanwhile
        state, path = self._desired[name]
        metadata: dict[str, Any] = {"namespace": self._namespace, "name": name, "labels": {LABEL: "true"}}
        metadata["annotations"] = machine_state.render_annotations(state, path)
        if name in objects:
            metadata["resourceVersion"] = objects[name][1]
            response = await self._api.replace(LEASES, {"metadata": metadata})
        else:
            response = await self._api.create(LEASES, {"metadata": metadata})
        objects[name] = state, str(response["metadata"].get("resourceVersion", ""))

    async def _remove(self, name: str, objects: dict[str, tuple[MachineState | None, str]]) -> None:
        await self._api.delete(LEASES, ObjectKey(self._namespace, name), version=objects[name][1])
        del objects[name]

    def _name_of(self, target: Target) -> str:
        """Return the name by which the NMIs of a target look for it."""
        if isinstance(target, VirtualMachine):
            node = self._cluster.nodes.get(ObjectKey("", target.spelling[2]))
            if node is not None and machine_state.published_target(node.name, node.provider_id) != target:
                return machine_state.object_name(machine_state.published_target(node.name, ""))
        return machine_state.object_name(target)

    def _warn(self, error: ForbiddenError) -> None:
        _log.log(
            logging.DEBUG if self._has_warned else logging.WARNING,
            "NMI is not told what is on machines: %s; without it NMI waits for AzureAssignedIdentities",
            error,
        )
        self._has_warned = True


async def remove_all(api: Api, namespace: str) -> None:
    """Delete all objects in MIC's namespace. What the role forbids stays, and harms nobody."""
    try:
        for name in await _load(api, namespace):
            await api.delete(LEASES, ObjectKey(namespace, name))
    except (ForbiddenError, NotFoundError) as error:
        _log.info("what NMI was told of machines stays: %s", error)


async def _load(api: Api, namespace: str) -> dict[str, tuple[MachineState | None, str]]:
    """Return the stored states and versions by name; None for one that cannot be read. Raises KubernetesError."""
    response = await api.list(LEASES, Selection(namespace=namespace, labels=f"{LABEL}=true"))
    return {key.name: (_state_of(item), item.version) for key, item in response.items.items()}


def _state_of(item: StoredObject[dict[str, Any]]) -> MachineState | None:
    try:
        return machine_state.parse_annotations(item.value["metadata"].get("annotations") or {})
    except MalformedObjectError:
        return None
