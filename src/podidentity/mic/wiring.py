"""Puts MIC together: the only module that constructs what the others work with."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx2
from prometheus_client import CollectorRegistry

from podidentity.core.model.identities import ObjectKey
from podidentity.core.model.policy import Policy
from podidentity.kube.api import Api, Pace
from podidentity.kube.connection import find_cluster, open_client
from podidentity.kube.election import Candidate, Election
from podidentity.kube.events import Recorder
from podidentity.mic.adapters.azure import open_azure
from podidentity.mic.adapters.cluster import WatchedCluster
from podidentity.mic.adapters.condition_writer import ApiConditionWriter
from podidentity.mic.adapters.events import BindingEvents
from podidentity.mic.adapters.identity_changes import IdentityChanges
from podidentity.mic.adapters.machine_states import ApiMachineStates
from podidentity.mic.adapters.objects import AssignedObjects, UnwrittenObjects, remove_stored
from podidentity.mic.adapters.records import ConfigMapRecords
from podidentity.mic.changes import Changes
from podidentity.mic.context import TermContext
from podidentity.mic.fencing import AZURE_WRITES, KUBERNETES_WRITES, fence
from podidentity.mic.metrics import CountedObjects, FailingIdentities, MeasuredMachines, Metrics
from podidentity.mic.ports import Machines, Ports
from podidentity.mic.settings import Settings
from podidentity.mic.term import Term
from podidentity.serving.metrics import make_registry


@dataclass(frozen=True, slots=True)
class Mic:
    """The parts of one MIC that live as long as its process."""

    settings: Settings
    api: Api
    cluster: WatchedCluster
    recorder: Recorder
    election: Election
    changes: Changes
    registry: CollectorRegistry
    metrics: Metrics
    failing: FailingIdentities

    def new_term(self, policy: Policy, machines: Machines) -> Term:
        """Return a term that has not begun yet, and have the metrics show what fails in it."""
        settings = self.settings
        is_written = settings.assigned_identities
        objects = AssignedObjects(self.api, self.cluster) if is_written else UnwrittenObjects(self.cluster)
        ports = Ports(
            cluster=self.cluster,
            objects=CountedObjects(objects, self.metrics),
            records=ConfigMapRecords(self.api, ObjectKey(settings.namespace, settings.config_map), policy),
            machines=MeasuredMachines(machines, self.metrics),
            events=BindingEvents(self.recorder, self.cluster),
            conditions=ApiConditionWriter(self.api, self.cluster, settings.conditions),
            machine_states=ApiMachineStates(self.api, settings.namespace, self.cluster, policy),
            remove_leftovers=_do_not_remove if is_written else lambda: remove_stored(self.api),
            identity_changes=lambda listener: IdentityChanges(self.cluster.identities, listener),
        )
        term = Term(TermContext(ports, self.changes, policy, settings, self.metrics.cycle))
        self.failing.source = lambda: term.failing
        return term


def assemble(settings: Settings, api: Api, lock_api: Api) -> Mic:
    """Return a MIC that has not started anything yet. `lock_api` is the way to the lock that it is elected by."""
    cluster = WatchedCluster(api, allow_list=settings.allow_list, is_written=settings.assigned_identities)
    changes, registry = Changes(), make_registry()
    cluster.report_to(changes)
    failing = FailingIdentities()
    registry.register(failing)
    instance = settings.leader_instance or socket.gethostname()
    candidate = Candidate(instance, settings.leader_name, settings.leader_namespace, settings.leader_seconds)
    return Mic(
        settings=settings,
        api=api,
        cluster=cluster,
        recorder=Recorder(api),
        election=Election(lock_api, candidate),
        changes=changes,
        registry=registry,
        metrics=Metrics(registry),
        failing=failing,
    )


async def _do_not_remove() -> None:
    """Do nothing: what is stored is what MIC writes."""


@asynccontextmanager
async def open_mic(settings: Settings) -> AsyncIterator[tuple[Mic, httpx2.AsyncClient]]:
    """Open the clients and assemble a MIC that writes only while it leads; yield it and its client for Azure.

    All clients are closed at the end, also when one of them cannot be opened. Raises PodIdentityError.
    """
    connection = find_cluster(settings.kubeconfig)
    # The lock has a client of its own: its renewal must never wait behind a busy sync.
    async with (
        open_client(connection, settings.user_agent) as http,
        open_client(connection, settings.user_agent) as lock_http,
        open_azure(settings.user_agent) as azure,
    ):
        mic = assemble(settings, Api(http, pace=Pace(settings.requests_per_second)), Api(lock_http))
        unsent_seconds = settings.leader_seconds / 3  # the next term begins half a lease after this one's last moment
        http.event_hooks["request"].append(fence(lambda: mic.election.leading, KUBERNETES_WRITES, unsent_seconds))
        azure.event_hooks["request"].append(fence(lambda: mic.election.leading, AZURE_WRITES, unsent_seconds))
        yield mic, azure
