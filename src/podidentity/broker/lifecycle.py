"""Starts the broker and ends it, and says where its certificates and events go."""

import asyncio
import contextlib
import logging

import httpx2

from podidentity.broker.adapters.entra import TIMEOUT
from podidentity.broker.adapters.pods import KubernetesPods
from podidentity.broker.adapters.reviews import KubernetesReviews
from podidentity.broker.metrics import Metrics
from podidentity.broker.settings import Settings
from podidentity.broker.spreading import Missing
from podidentity.broker.wiring import Clients, Parts, assemble, read_credential
from podidentity.certificates.publications import BundleConfigMaps
from podidentity.certificates.rotation import Certificates
from podidentity.certificates.settings import CertificateSettings
from podidentity.core.model.identities import ObjectKey
from podidentity.core.tokens.sources import FederatedIdentity
from podidentity.errors import AzureError
from podidentity.https.lifecycle import Daemon, Ports, StopRequest, serve, stop_event
from podidentity.kube.api import Api
from podidentity.kube.connection import find_cluster, open_client
from podidentity.kube.events import Recorder, Subject
from podidentity.serving.metrics import make_registry
from podidentity.timing import SYSTEM_CLOCK

_log = logging.getLogger(__name__)

MISSING_REASON = "FederatedCredentialMissing"


async def run(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT. Raises `PodIdentityError` when it cannot start."""
    stop = stop_event()
    async with contextlib.AsyncExitStack() as resources:
        client = open_client(find_cluster(settings.kubeconfig), settings.user_agent)
        api = Api(await resources.enter_async_context(client))
        entra = httpx2.AsyncClient(headers={"User-Agent": settings.user_agent}, timeout=TIMEOUT, follow_redirects=False)
        await resources.enter_async_context(entra)
        recorder = Recorder(api)
        certificates = Certificates(api, certificate_settings(settings), _publications(settings))
        clients = Clients(KubernetesReviews(api), KubernetesPods(api), entra, _missing_event(settings, recorder))
        try:
            async with asyncio.TaskGroup() as tasks:
                parts = assemble(settings, Metrics(make_registry()), clients, SYSTEM_CLOCK, tasks)
                await serve(_daemon(settings, parts, certificates, recorder), stop, tasks)
        except* StopRequest:
            pass


def _daemon(settings: Settings, parts: Parts, certificates: Certificates, recorder: Recorder) -> Daemon:
    return Daemon(
        "the broker",
        Ports(settings.address, settings.port, settings.probe_port, settings.prometheus_port),
        parts.server,
        certificates,
        parts.metrics.registry,
        parts.metrics.certificate_expiry,
        settings.drain_seconds,
        (recorder.run,),
    )


def certificate_settings(settings: Settings) -> CertificateSettings:
    """Return where the CA is kept and which names the serving certificate has: the Service's, and the given ones."""
    service = f"{settings.name}.{settings.namespace}.svc"
    names = (service, f"{service}.cluster.local", *settings.server_names)
    return CertificateSettings(ObjectKey(settings.namespace, f"{settings.name}-ca"), names)


def _publications(settings: Settings) -> tuple[BundleConfigMaps, ...]:
    namespaces = frozenset({settings.namespace, *settings.bundle_namespaces})
    return (BundleConfigMaps(f"{settings.name}-ca", lambda: namespaces),)


def _missing_event(settings: Settings, recorder: Recorder) -> Missing:
    """Return what tells of an identity without a credential: an event on the broker's own service account."""
    account = Subject("v1", "ServiceAccount", ObjectKey(settings.namespace, settings.name))

    def tell(source: FederatedIdentity, error: AzureError) -> None:
        credential = read_credential(settings.token_file)
        message = (
            f"Entra ID knows no federated credential for the broker on identity {source.client_id}; "
            f"one that was just created takes up to some minutes, else create it with {credential} ({error})"
        )
        _log.warning("%s", message)
        recorder.record(account, "Warning", MISSING_REASON, message)

    return tell
