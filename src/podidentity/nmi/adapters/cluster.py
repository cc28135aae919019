"""Kubernetes as NMI sees it: this node's pods and what they are assigned, in stores that reflectors keep true.

Adapts `kube` to the Protocols of `ports`, and turns each change into what it means here: somebody to wake, a
connection to reset, a token to forget.
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from podidentity.core.model import allow_list, matching
from podidentity.core.model.allow_list import AllowList
from podidentity.core.model.arm import IdentityId
from podidentity.core.model.identities import (
    AzureAssignedIdentity,
    AzureIdentity,
    AzureIdentityBinding,
    AzurePodIdentityException,
    ObjectKey,
    SecretReference,
)
from podidentity.core.model.matching import Match
from podidentity.core.model.snapshot import Pod
from podidentity.core.tokens.sources import Source, source_of
from podidentity.errors import KubernetesError, UnreachableError
from podidentity.kube import resources
from podidentity.kube.api import Api, Selection
from podidentity.kube.reflector import Reflector, describe
from podidentity.kube.store import Change, Store, addresses, pod_of, selector_in_namespace
from podidentity.nmi.adapters.own_decision import (
    WATCHING,
    OwnDecision,
    RuleStores,
    identities_that_came,
    if_differs,
    rule_reflectors,
)
from podidentity.nmi.ports import WATCH_TRUSTED_SECONDS, SecretContents
from podidentity.nmi.revisions import Revisions
from podidentity.nmi.settings import Settings

_log = logging.getLogger(__name__)

_ROLE_SECONDS, _LONGEST_ROLE_SECONDS = 30.0, 3600.0  # between two looks at what our role allows; doubles
_LONG_AGO, _FUTURE = -float("inf"), float("inf")
_LOOK_SECONDS = 5.0  # a client of an unknown pod waits for it
_UNFINISHED = "status.phase!=Failed,status.phase!=Succeeded"  # a finished pod's address is nobody's; any number stays
_LABEL_LIMIT = 63  # longer names are no label values: then the objects of all nodes are watched


class Follower(Protocol):
    """Who hears of changes."""

    def pod_changed(self, pod: ObjectKey) -> None:
        """Something about this pod is new: look again."""

    def pod_at(self, address: str) -> None:
        """A live pod of this node has this address."""

    def pod_gone(self, uid: str) -> None:
        """This pod no longer exists, has ended, or has lost its addresses."""

    def source_unused(self, source: Source) -> None:
        """No assigned identity of this node rests on `source` any more."""

    def identities_came(self, identities: frozenset[IdentityId]) -> None:
        """MIC says that these are on the node's machine now."""

    def anything_changed(self) -> None:
        """Something changed that may concern every pod."""


class _Stores(NamedTuple):
    pods: Store[Pod]
    assigned_identities: Store[AzureAssignedIdentity]
    exceptions: Store[AzurePodIdentityException]


class Cluster:
    """Pods, grants and pods by name, for one node. In managed mode bindings count, else what MIC assigns.

    What that is NMI decides by itself where its role allows it, else it goes by MIC's assigned identities.
    `on_synced` is called when the pods are listed, `on_error` with upstream's name of a request that failed.
    """

    def __init__(
        self,
        api: Api,
        settings: Settings,
        on_synced: Callable[[], None] = lambda: None,
        on_error: Callable[[str], None] = lambda _: None,
    ) -> None:
        node = settings.node
        self._api = api
        self._node = Selection(fields=f"spec.nodeName={node},{_UNFINISHED}")
        self._on_error = on_error
        self._allow_list = settings.namespace_allow_list
        self._followers: list[Follower] = []
        self._stores = stores = _Stores(Store(), Store(), Store())
        self._rules = rules = RuleStores(Store(), Store(), Store())
        self._own_decision = OwnDecision(api, settings, rules)
        self.revisions = Revisions()
        """Of what choices depend on."""
        self.revision_of = self.revisions.revision_of
        self.decides = False
        """Whether NMI decides by itself what MIC would assign."""
        stores.assigned_identities.subscribe(self._count)
        stores.exceptions.subscribe(lambda change: self.revisions.count_namespace(change.key.namespace))
        rules.bindings.subscribe(if_differs(lambda change: self.revisions.count_selectors(_selectors_of(change))))
        rules.identities.subscribe(if_differs(lambda change: self.revisions.count_selectors(self._naming(change.key))))
        for rule_store in (rules.namespaces, self._own_decision.machines):
            rule_store.subscribe(if_differs(self._count))
        self.with_address: Callable[[str], Sequence[Pod]] = stores.pods.index(addresses).find
        """Return the live pods that claim an address."""
        self._by_pod = stores.assigned_identities.index(pod_of)
        self._by_selector = rules.bindings.index(selector_in_namespace)
        self._by_identity = rules.bindings.index(_identity_key_of)
        self._by_namespace = stores.exceptions.index(_namespace_of)
        self._pods_by_selector = stores.pods.index(_selector_of_pod)
        self._pods_by_namespace = stores.pods.index(_namespace_of_pod)
        self._pods = Reflector(
            api, resources.PODS, stores.pods, selection=self._node, watching=WATCHING, on_first_list=on_synced
        )
        self._exceptions = Reflector(api, resources.EXCEPTIONS, stores.exceptions, watching=WATCHING)
        selection = Selection(labels=f"nodename={node}" if len(node) <= _LABEL_LIMIT else "")
        self._objects = Reflector(
            api, resources.ASSIGNED_IDENTITIES, stores.assigned_identities, selection=selection, watching=WATCHING
        )
        self._managed_watches = (
            rule_reflectors(api, rules, has_allow_list=self._allow_list) if settings.managed_mode else None
        )
        self._granting: tuple[Reflector[Any], ...] = ()
        self._mode_known = asyncio.Event()
        """It is known which watches choices rest on."""
        self._rest_on(self._managed_watches or self._own_decision.reflectors)

    async def run(self) -> None:
        """Follow the cluster until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._pods.run())
            tasks.create_task(self._exceptions.run())
            for reflector in self._managed_watches or ():
                tasks.create_task(reflector.run())
            if self._managed_watches is None:
                await self._follow_assignments(tasks)
            self._mode_known.set()

    async def _follow_assignments(self, tasks: asyncio.TaskGroup) -> None:
        """Decide by ourselves as soon as the role allows it, and go by MIC's assigned identities until then."""
        watch: asyncio.Task[None] | None = None
        pause_seconds = _ROLE_SECONDS
        while not await self._may_decide():
            if watch is None:
                watch = tasks.create_task(self._objects.run())
                self._rest_on((self._objects,))
                self._mode_known.set()
            # Roles are corrected while NMI runs; an API server that has just started refuses what it will allow.
            await self._api.clock.sleep(pause_seconds * (1 - random.random() / 2))  # noqa: S311  # spread, no secret
            pause_seconds = min(pause_seconds * 2, _LONGEST_ROLE_SECONDS)
        own_decision = self._own_decision
        tasks.create_task(own_decision.run())
        for reflector in own_decision.reflectors:
            await reflector.store.wait_until_synced()
        self.decides = True
        self.revisions.count()
        own_decision.on_other_machine = lambda: self._rest_on(own_decision.reflectors)
        self._rest_on(own_decision.reflectors)
        for follower in self._followers:
            follower.anything_changed()
        if watch is not None:
            watch.cancel()

    async def _may_decide(self) -> bool:
        failures = 0
        while True:
            try:
                return await self._own_decision.is_allowed()
            except KubernetesError as error:
                failures += 1
                _log.warning("whether NMI may decide by itself is not known yet: %s", error)
                await self._api.clock.sleep(WATCHING.pause_seconds(failures))

    def _rest_on(self, reflectors: tuple[Reflector[Any], ...]) -> None:
        """Note which watches choices depend on from now on, besides exceptions."""
        self._granting = (self._exceptions, *reflectors)

    async def wait_until_synced(self) -> None:
        """Return when everything was listed once."""
        await self._mode_known.wait()
        for reflector in (self._pods, *self._granting):
            await reflector.store.wait_until_synced()

    def delays(self) -> tuple[str, ...]:
        """Return which watches are not in step with the cluster, one sentence each."""
        return describe((self._pods, *self._granting), WATCH_TRUSTED_SECONDS)

    def subscribe(self, follower: Follower) -> None:
        """Report each change to `follower` from now on."""
        stores, rules, machines = self._stores, self._rules, self._own_decision.machines
        self._followers.append(follower)
        stores.pods.subscribe(lambda change: _report_pod(follower, change))
        stores.assigned_identities.subscribe(lambda change: self._report_assigned(follower, change))
        rules.identities.subscribe(if_differs(lambda change: self._report_unused(follower, change.previous)))
        rules.bindings.subscribe(lambda change: self._report_unused(follower, self._identity_of(change.previous)))
        machines.subscribe(lambda change: follower.identities_came(identities_that_came(change)))
        stores.exceptions.subscribe(if_differs(lambda change: self._wake_namespace(follower, change.key.namespace)))
        rules.bindings.subscribe(if_differs(lambda change: self._wake_selectors(follower, _selectors_of(change))))
        rules.identities.subscribe(if_differs(lambda change: self._wake_selectors(follower, self._naming(change.key))))
        for store in (rules.namespaces, machines):
            store.subscribe(if_differs(lambda _: follower.anything_changed()))

    def _wake_selectors(self, follower: Follower, selectors: Collection[str]) -> None:
        for selector in selectors:
            for pod in self._pods_by_selector.find(selector):
                follower.pod_changed(pod.key)

    def _wake_namespace(self, follower: Follower, namespace: str) -> None:
        for pod in self._pods_by_namespace.find(namespace):
            follower.pod_changed(pod.key)

    # Pods

    def with_addresses(self) -> Collection[Pod] | None:
        """Return the live pods with a network of their own; None before the first list."""
        pods = self._stores.pods
        return [pod for pod in pods if addresses(pod)] if pods.synced else None

    def on_pods(self, hook: Callable[[], None]) -> None:
        """Call `hook` after each change of a pod."""
        self._stores.pods.subscribe(lambda _: hook())

    def confirmed_at(self) -> float:
        """Return when the watch of pods was last known to be true, in steady seconds."""
        confirmed_at = self._pods.confirmed_at
        return _LONG_AGO if confirmed_at is None else confirmed_at

    async def look(self, address: str) -> Sequence[Pod]:
        """Return the pods with `address`. Lists all: it may be a pod's second address, which no selector knows."""
        return tuple(pod for pod in await self.look_at_all() if address in addresses(pod))

    async def look_at_all(self) -> Sequence[Pod]:
        """Return this node's pods from the API server itself. Raises `KubernetesError`."""
        with self._counting("get_pod_list"):
            try:
                async with asyncio.timeout(_LOOK_SECONDS):
                    response = await self._api.list(resources.PODS, self._node, known_odd=self._pods.odd)
            except TimeoutError:
                raise UnreachableError(f"list pods: no answer within {_LOOK_SECONDS:g} s") from None
        return tuple(response.values)

    def by_name(self, key: ObjectKey) -> Pod | None:
        """Return a live pod of this node by name."""
        pod = self._stores.pods.get(key)
        return pod if pod is not None and pod.live else None

    async def read_secret(self, secret: SecretReference) -> SecretContents:
        """Return one Secret. Raises `KubernetesError`."""
        with self._counting("get_secret"):
            return (await self._api.get(resources.SECRETS, ObjectKey(*secret))).values

    @contextlib.contextmanager
    def _counting(self, operation: str) -> Iterator[None]:
        try:
            yield
        except KubernetesError:
            self._on_error(operation)
            raise

    # Grants

    def _count(self, _: Change[Any]) -> None:
        self.revisions.count()

    def _naming(self, identity: ObjectKey) -> frozenset[str]:
        """Return the selectors of the bindings that name an AzureIdentity."""
        return frozenset(binding.selector for binding in self._by_identity.find(identity))

    def grants_confirmed_at(self) -> float:
        """Return when every watch that choices depend on was last known to be true; `confirmed_at` is about pods."""
        oldest = _FUTURE
        for reflector in self._granting:  # a loop without calls, because this is asked with every request
            moment = reflector.confirmed_at
            if moment is None:
                return _LONG_AGO
            oldest = moment if moment < oldest else oldest  # noqa: FURB136  # see above
        return oldest

    @property
    def knows_machine(self) -> bool:
        """Whether MIC has said what is on this node's machine."""
        return self._own_decision.machine is not None

    def there_since(self, identity: IdentityId) -> float | None:
        """Return since when MIC says that an identity is on this node's machine; None: it does not."""
        return self._own_decision.there_since.get(identity)

    def assigned_to(self, pod: Pod) -> Sequence[AzureAssignedIdentity]:
        """Return what MIC assigns to the pod, by our own decision or by its objects that name the pod."""
        return self._own_decision.assigned_to(pod) if self.decides else self._by_pod.find(pod.key)

    def bound_to(self, pod: Pod) -> Sequence[Match]:
        """Return what the bindings of the pod's own namespace give it, in binding order."""
        bindings = self._by_selector.find((pod.key.namespace, pod.selector))
        keys = (ObjectKey(binding.key.namespace, binding.azure_identity) for binding in bindings)
        identities = {key: identity for key in keys if (identity := self._rules.identities.get(key)) is not None}
        allow_lists = self._allow_lists(pod.key.namespace) if self._allow_list else None
        selections = matching.Selections(bindings, identities, force_namespaced=True, permissions=allow_lists)
        return tuple(result for result in selections.results_for(pod) if isinstance(result, Match))

    def _allow_lists(self, namespace: str) -> AllowList:
        namespace_object = self._rules.namespaces.get(ObjectKey("", namespace))
        return (
            {namespace: namespace_object.annotations[allow_list.ANNOTATION]}
            if namespace_object and allow_list.ANNOTATION in namespace_object.annotations
            else {}
        )

    def exceptions_in(self, namespace: str) -> Sequence[AzurePodIdentityException]:
        """Return the exceptions of a namespace."""
        return self._by_namespace.find(namespace)

    def _report_assigned(self, follower: Follower, change: Change[AzureAssignedIdentity]) -> None:
        for assigned_identity in (change.previous, change.current):
            if assigned_identity is not None:
                follower.pod_changed(assigned_identity.pod)
        previous = change.previous
        if previous is None or (change.current is not None and change.current.identity == previous.identity):
            return
        source = source_of(previous.identity)
        remaining = (assigned_identity.identity for assigned_identity in self._stores.assigned_identities)
        if isinstance(source, tuple) and not any(source_of(identity) == source for identity in remaining):
            follower.source_unused(source)

    def _report_unused(self, follower: Follower, previous: AzureIdentity | None) -> None:
        """Report, in managed mode, that no binding leads to the source of an identity any more."""
        source = source_of(previous) if previous is not None else None
        if not isinstance(source, tuple):
            return
        bound = (self._identity_of(binding) for binding in self._rules.bindings)
        if not any(source_of(identity) == source for identity in bound if identity is not None):
            follower.source_unused(source)

    def _identity_of(self, binding: AzureIdentityBinding | None) -> AzureIdentity | None:
        if binding is None:
            return None
        return self._rules.identities.get(ObjectKey(binding.key.namespace, binding.azure_identity))


def _report_pod(follower: Follower, change: Change[Pod]) -> None:
    previous, current = change.previous, change.current
    follower.pod_changed(change.key)
    for address in addresses(current) if current is not None else ():
        follower.pod_at(address)
    if previous is not None and (current is None or not current.live or current.ips != previous.ips):
        follower.pod_gone(previous.uid)


def _selectors_of(change: Change[AzureIdentityBinding]) -> frozenset[str]:
    """Return the selectors that a binding had or has."""
    return frozenset(binding.selector for binding in (change.previous, change.current) if binding is not None)


def _identity_key_of(binding: AzureIdentityBinding) -> tuple[ObjectKey]:
    return (ObjectKey(binding.key.namespace, binding.azure_identity),)


def _selector_of_pod(pod: Pod) -> tuple[str, ...]:
    return (pod.selector,) if pod.selector else ()


def _namespace_of_pod(pod: Pod) -> tuple[str]:
    return (pod.key.namespace,)


def _namespace_of(exception: AzurePodIdentityException) -> tuple[str]:
    return (exception.key.namespace,)
