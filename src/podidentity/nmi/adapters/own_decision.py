"""NMI's own decision in standard mode: who may use which identity, from bindings, identities and this node's machine.

The code that decides is MIC's (`core.assignment`), and so are the rules: what MIC says of the machine names them, and
the stricter of two settings counts. An NMI whose role does not allow it to watch all of this waits for MIC's assigned
identities instead (`cluster`).
"""

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Any, NamedTuple

from podidentity.core.assignment.assigning import Offers
from podidentity.core.assignment.pod_assignments import pod_assignments
from podidentity.core.model import allow_list, machine_state
from podidentity.core.model.allow_list import AllowList
from podidentity.core.model.arm import IdentityId
from podidentity.core.model.identities import AzureAssignedIdentity, AzureIdentity, AzureIdentityBinding, ObjectKey
from podidentity.core.model.machine_state import MachineState
from podidentity.core.model.policy import Policy
from podidentity.core.model.snapshot import Node, Pod, Snapshot
from podidentity.errors import ForbiddenError, KubernetesError, NotFoundError
from podidentity.kube import resources
from podidentity.kube.api import Api, Selection
from podidentity.kube.reflector import Reflector, Watching
from podidentity.kube.store import Change, Store, selector_of
from podidentity.nmi.settings import Settings

WATCHING = Watching(turn_bytes=4 * 1024)  # an event or two: a token that is there already waits for no more
FIRST_NODE_SECONDS = 2.0
LONGEST_NODE_SECONDS = 600.0
"""Pauses between looks at a node without provider ID double from the one to the other: the cloud's controller gives it
one within seconds, and where there is none it stays without."""
_NO_OBJECT = "metadata.name=none"  # a list of nothing: it says whether one may list

_log = logging.getLogger(__name__)


class RuleStores(NamedTuple):
    """What bindings give, and what namespaces are allowed."""

    identities: Store[AzureIdentity]
    bindings: Store[AzureIdentityBinding]
    namespaces: Store[resources.Namespace]


def rule_reflectors(api: Api, stores: RuleStores, *, has_allow_list: bool) -> tuple[Reflector[Any], ...]:
    """Return the watches that keep the stores; of namespaces only where they are needed."""
    reflectors: tuple[Reflector[Any], ...] = (
        Reflector(api, resources.IDENTITIES, stores.identities, watching=WATCHING),
        Reflector(api, resources.BINDINGS, stores.bindings, watching=WATCHING),
    )
    if not has_allow_list:
        return reflectors
    return (*reflectors, Reflector(api, resources.NAMESPACES, stores.namespaces, watching=WATCHING))


class OwnDecision:
    """The assigned identities of this node's pods, as MIC would write them."""

    def __init__(self, api: Api, settings: Settings, stores: RuleStores) -> None:
        self._api = api
        self._settings = settings
        self._stores = stores
        self._by_selector = stores.bindings.index(selector_of)
        self._rules = rule_reflectors(api, stores, has_allow_list=settings.namespace_allow_list)
        self._node = Node(settings.node)
        self.machines: Store[MachineState] = Store()
        """The one object about this node's machine, if there is one."""
        self.there_since: dict[IdentityId, float] = {}
        """Since when it has named each identity, in steady seconds."""
        self.machines.subscribe(self._warn_of_rules)
        self.machines.subscribe(self._note_times)
        self._machine = self._watch_machine()
        self.on_other_machine: Callable[[], None] = lambda: None
        """Called when the watch of the machine is another one."""

    @property
    def reflectors(self) -> tuple[Reflector[Any], ...]:
        """The watches that a decision rests on."""
        return (*self._rules, self._machine)

    @property
    def machine(self) -> MachineState | None:
        """What MIC says of this node's machine; None: nothing."""
        return next(iter(self.machines), None)

    async def is_allowed(self) -> bool:
        """Whether the role allows what this needs. Raises KubernetesError when that cannot be found out."""
        try:
            self._node = await self._api.get(resources.NODES, ObjectKey("", self._settings.node))
            for reflector in self._rules:
                await self._api.list(reflector.kind, Selection(fields=_NO_OBJECT))
            await self._api.list(resources.MACHINE_STATES, self._machine_selection())
        except (ForbiddenError, NotFoundError) as error:
            _log.info("NMI goes by MIC's assigned identities: %s", error)
            return False
        self._machine = self._watch_machine()
        return True

    async def run(self) -> None:
        """Follow the cluster until cancelled, and the node to its machine."""
        async with asyncio.TaskGroup() as tasks:
            for reflector in self._rules:
                tasks.create_task(reflector.run())
            while True:
                watch = tasks.create_task(self._machine.run())
                await self._wait_for_provider_id()
                watch.cancel()
                self._machine = self._watch_machine()
                self.on_other_machine()

    def assigned_to(self, pod: Pod) -> tuple[AzureAssignedIdentity, ...]:
        """Return what MIC's assigned identities for a pod of this node would say."""
        machine = self.machine
        policy = self._policy(machine)
        bindings = self._by_selector.find(pod.selector)
        keys = {ObjectKey(binding.key.namespace, binding.azure_identity) for binding in bindings}
        identities = {key: identity for key in keys if (identity := self._stores.identities.get(key)) is not None}
        allow_lists = self._allow_lists({pod.key.namespace, *(key.namespace for key in keys)})
        snapshot = Snapshot(bindings=bindings, identities=identities, allow_list=allow_lists)
        arm_state = machine.arm_state if machine is not None else None
        return pod_assignments(pod, self._node, arm_state, Offers(snapshot, policy), policy)

    def _policy(self, machine: MachineState | None) -> Policy:
        """Return the rules: where MIC has not said its own, no namespace uses what is another's."""
        settings = self._settings
        return Policy(
            force_namespaced=settings.force_namespaced or machine is None or machine.force_namespaced,
            allow_list=settings.namespace_allow_list or (machine is not None and machine.allow_list),
        )

    def _allow_lists(self, namespaces: set[str]) -> AllowList:
        objects = ((name, self._stores.namespaces.get(ObjectKey("", name))) for name in namespaces)
        annotations = ((name, item.annotations.get(allow_list.ANNOTATION)) for name, item in objects if item)
        return {name: text for name, text in annotations if text}

    def _machine_selection(self) -> Selection:
        target = machine_state.published_target(self._node.name, self._node.provider_id)
        name = machine_state.object_name(target)
        return Selection(namespace=self._settings.mic_namespace, fields=f"metadata.name={name}")

    def _watch_machine(self) -> Reflector[MachineState]:
        selection = self._machine_selection()
        return Reflector(self._api, resources.MACHINE_STATES, self.machines, selection=selection, watching=WATCHING)

    async def _wait_for_provider_id(self) -> None:
        """Return when the node has got a provider ID; it never gets another."""
        pause_seconds = FIRST_NODE_SECONDS
        while self._node.provider_id:
            await asyncio.Event().wait()
        while True:
            await self._api.clock.sleep(pause_seconds * (1 - random.random() / 2))  # noqa: S311  # spread, no secret
            pause_seconds = min(pause_seconds * 2, LONGEST_NODE_SECONDS)
            try:
                node = await self._api.get(resources.NODES, ObjectKey("", self._settings.node))
            except KubernetesError as error:
                _log.info("which machine this node is cannot be read yet: %s", error)
                continue
            if node.provider_id:
                self._node = node
                return

    def _note_times(self, change: Change[MachineState]) -> None:
        identities = change.current.client_ids if change.current is not None else ()
        now = self._api.clock.steady()
        self.there_since = {identity: self.there_since.get(identity, now) for identity in identities}

    def _warn_of_rules(self, change: Change[MachineState]) -> None:
        if change.current is not None and change.current.allow_list and not self._settings.namespace_allow_list:
            _log.error(
                "MIC runs with --namespace-allow-list and this NMI without: pods get no managed identity; "
                "start NMI with it, too, and let its role list and watch namespaces"
            )


def identities_that_came(change: Change[MachineState]) -> frozenset[IdentityId]:
    """Return the identities that are on the machine now and were not before."""
    previous = change.previous.client_ids.keys() if change.previous is not None else frozenset()
    current = change.current.client_ids.keys() if change.current is not None else frozenset()
    return frozenset(current - previous)


def if_differs(handle: Callable[[Change[Any]], None]) -> Callable[[Change[Any]], None]:
    """Return a subscriber that passes on what a decision may depend on: MIC's conditions are no change."""

    def handle_difference(change: Change[Any]) -> None:
        if change.previous != change.current:
            handle(change)

    return handle_difference
