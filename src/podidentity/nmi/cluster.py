"""Kubernetes as NMI sees it: this node's pods and what they are assigned, in stores that reflectors keep true.

Adapts `kube` to the Protocols of `ports`, and turns each change into what it means here: somebody to wake, a
connection to reset, a token to forget. Constructed by `daemon`.
"""

import asyncio
import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from podidentity.core import allowing, matching
from podidentity.core.allowing import AllowList
from podidentity.core.cluster import Pod
from podidentity.core.identities import (
    AzureAssignedIdentity,
    AzureIdentity,
    AzureIdentityBinding,
    AzurePodIdentityException,
    ObjectKey,
    SecretReference,
)
from podidentity.core.matching import Match
from podidentity.core.sources import Source, source_of
from podidentity.errors import KubernetesError, UnreachableError
from podidentity.kube import resources
from podidentity.kube.api import Api, Selection
from podidentity.kube.reflector import Reflector, describe
from podidentity.kube.store import Change, Store, addresses, pod_of, selector_in_namespace
from podidentity.nmi.ports import WATCH_TRUSTED_SECONDS, SecretContents
from podidentity.nmi.settings import Settings

_NEVER, _FOREVER = -float("inf"), float("inf")
_LOOK_SECONDS = 5.0  # a client of an unknown pod waits for it
_LABEL_LIMIT = 63  # longer names are no label values: then the objects of all nodes are watched


class Follower(Protocol):
    """Who wants to hear of changes; `daemon` gives the listener, the cache and those who wait."""

    def pod_changed(self, pod: ObjectKey) -> None:
        """Something about this pod is new: look again."""

    def pod_at(self, address: str) -> None:
        """A live pod of this node has this address."""

    def pod_gone(self, uid: str) -> None:
        """This pod no longer exists, has ended, or has lost its addresses."""

    def source_unused(self, source: Source) -> None:
        """No assigned identity of this node rests on `source` any more."""

    def anything_changed(self) -> None:
        """Something changed that may concern every pod."""


class _Stores(NamedTuple):
    pods: Store[Pod]
    assigned: Store[AzureAssignedIdentity]
    exceptions: Store[AzurePodIdentityException]
    identities: Store[AzureIdentity]
    bindings: Store[AzureIdentityBinding]
    namespaces: Store[resources.Namespace]


class Cluster:
    """Pods, grants and pods by name, for one node. In managed mode bindings count, else assigned identities.

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
        self._node = Selection(fields=f"spec.nodeName={node}")
        self._on_error = on_error
        self._allow_list = settings.namespace_allow_list
        self._stores = stores = _Stores(Store(), Store(), Store(), Store(), Store(), Store())
        self.revision = 0
        """Grows with each change of anything that a choice depends on."""
        for store in stores[1:]:
            store.subscribe(self._count)
        self.at: Callable[[str], Sequence[Pod]] = stores.pods.index(addresses).of
        """The live pods that claim an address."""
        self._by_pod = stores.assigned.index(pod_of)
        self._by_selector = stores.bindings.index(selector_in_namespace)
        self._by_namespace = stores.exceptions.index(_namespace_of)
        self._pods = Reflector(api, resources.PODS, stores.pods, where=self._node, on_first_list=on_synced)
        self._granting: tuple[Reflector[Any], ...] = (Reflector(api, resources.EXCEPTIONS, stores.exceptions),)
        if settings.managed_mode:
            self._granting += (
                Reflector(api, resources.IDENTITIES, stores.identities),
                Reflector(api, resources.BINDINGS, stores.bindings),
            )
            if self._allow_list:
                self._granting += (Reflector(api, resources.NAMESPACES, stores.namespaces),)
        else:
            labels = f"nodename={node}" if len(node) <= _LABEL_LIMIT else ""
            where = Selection(labels=labels)
            self._granting += (Reflector(api, resources.ASSIGNED_IDENTITIES, stores.assigned, where=where),)
        self._reflectors = (self._pods, *self._granting)

    async def run(self) -> None:
        """Follow the cluster until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for reflector in self._reflectors:
                tasks.create_task(reflector.run())

    async def wait_until_synced(self) -> None:
        """Return when everything was listed once."""
        for reflector in self._reflectors:
            await reflector.store.wait_until_synced()

    def behind(self) -> tuple[str, ...]:
        """Say what is not in step with the cluster, one sentence each."""
        return describe(self._reflectors, WATCH_TRUSTED_SECONDS)

    def tell(self, follower: Follower) -> None:
        """Tell `follower` of each change from now on."""
        stores = self._stores
        stores.pods.subscribe(lambda change: _tell_pod(follower, change))
        stores.assigned.subscribe(lambda change: self._tell_assigned(follower, change))
        stores.identities.subscribe(lambda change: self._tell_unused(follower, change.before))
        stores.bindings.subscribe(lambda change: self._tell_unused(follower, self._identity_of(change.before)))
        for store in (stores.exceptions, stores.identities, stores.bindings, stores.namespaces):
            store.subscribe(lambda _: follower.anything_changed())

    # Pods

    def with_addresses(self) -> Collection[Pod] | None:
        """Return the live pods with a network of their own; None before the first list."""
        pods = self._stores.pods
        return [pod for pod in pods if addresses(pod)] if pods.synced else None

    def on_pods(self, changed: Callable[[], None]) -> None:
        """Call `changed` after each change of a pod."""
        self._stores.pods.subscribe(lambda _: changed())

    def confirmed(self) -> float:
        """Say when the watch of pods was last known to be true."""
        confirmed_at = self._pods.confirmed_at
        return _NEVER if confirmed_at is None else confirmed_at

    async def look(self, address: str) -> Sequence[Pod]:
        """Ask for all: an address may also be a pod's second one, which no selector knows."""
        return tuple(pod for pod in await self.look_at_all() if address in addresses(pod))

    async def look_at_all(self) -> Sequence[Pod]:
        """List this node's pods directly. Raises `KubernetesError`."""
        with self._counting("get_pod_list"):
            try:
                async with asyncio.timeout(_LOOK_SECONDS):
                    listed = await self._api.list(resources.PODS, self._node)
            except TimeoutError:
                raise UnreachableError(f"list pods: no answer within {_LOOK_SECONDS:g} s") from None
        return tuple(listed.values)

    def named(self, key: ObjectKey) -> Pod | None:
        """Return a live pod of this node by name."""
        pod = self._stores.pods.get(key)
        return pod if pod is not None and pod.live else None

    async def read_secret(self, secret: SecretReference) -> SecretContents:
        """Get one Secret."""
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
        self.revision += 1

    def granted_as_of(self) -> float:
        """Say when every watch of what choices depend on was last known to be true; `confirmed` says it of pods."""
        oldest = _FOREVER
        for reflector in self._granting:  # a loop without calls, because this is asked with every request
            moment = reflector.confirmed_at
            if moment is None:
                return _NEVER
            oldest = moment if moment < oldest else oldest  # noqa: FURB136  # see above
        return oldest

    def assigned_to(self, pod: ObjectKey) -> Sequence[AzureAssignedIdentity]:
        """Return the assigned identities that name the pod."""
        return self._by_pod.of(pod)

    def bound_to(self, pod: Pod) -> Sequence[Match]:
        """Return what the bindings of the pod's own namespace give it, in binding order."""
        found = self._by_selector.of((pod.key.namespace, pod.selector))
        named = (ObjectKey(one.key.namespace, one.azure_identity) for one in found)
        identities = {key: identity for key in named if (identity := self._stores.identities.get(key)) is not None}
        allowed = self._allowed(pod.key.namespace) if self._allow_list else None
        selections = matching.Selections(found, identities, force_namespaced=True, allowed=allowed)
        return tuple(result for result in selections.of(pod) if isinstance(result, Match))

    def _allowed(self, namespace: str) -> AllowList:
        found = self._stores.namespaces.get(ObjectKey("", namespace))
        return (
            {namespace: found.annotations[allowing.ANNOTATION]}
            if found and allowing.ANNOTATION in found.annotations
            else {}
        )

    def exceptions_in(self, namespace: str) -> Sequence[AzurePodIdentityException]:
        """Return the exceptions of a namespace."""
        return self._by_namespace.of(namespace)

    def _tell_assigned(self, follower: Follower, change: Change[AzureAssignedIdentity]) -> None:
        for assigned in (change.before, change.after):
            if assigned is not None:
                follower.pod_changed(assigned.pod)
        before = change.before
        if before is None or (change.after is not None and change.after.identity == before.identity):
            return
        source = source_of(before.identity)
        if isinstance(source, tuple) and not any(source_of(one.identity) == source for one in self._stores.assigned):
            follower.source_unused(source)

    def _tell_unused(self, follower: Follower, before: AzureIdentity | None) -> None:
        """In managed mode: tokens go when no binding leads to their source any more."""
        source = source_of(before) if before is not None else None
        if not isinstance(source, tuple):
            return
        bound = (self._identity_of(binding) for binding in self._stores.bindings)
        if not any(source_of(identity) == source for identity in bound if identity is not None):
            follower.source_unused(source)

    def _identity_of(self, binding: AzureIdentityBinding | None) -> AzureIdentity | None:
        if binding is None:
            return None
        return self._stores.identities.get(ObjectKey(binding.key.namespace, binding.azure_identity))


def _tell_pod(follower: Follower, change: Change[Pod]) -> None:
    before, after = change.before, change.after
    follower.pod_changed(change.key)
    for address in addresses(after) if after is not None else ():
        follower.pod_at(address)
    if before is not None and (after is None or not after.live or after.ips != before.ips):
        follower.pod_gone(before.uid)


def _namespace_of(exception: AzurePodIdentityException) -> tuple[str]:
    return (exception.key.namespace,)
