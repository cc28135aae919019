"""Builds the parts of the webhook and connects them; nothing runs yet."""

from typing import NamedTuple

from podidentity.certificates.publications import BundleWebhook
from podidentity.certificates.rotation import Certificates
from podidentity.certificates.settings import CertificateSettings
from podidentity.core.model.identities import ObjectKey
from podidentity.https.places import Places
from podidentity.https.server import Server
from podidentity.kube.api import Api
from podidentity.serving.metrics import make_registry
from podidentity.timing import Clock
from podidentity.webhook.adapters.accounts import KubernetesAccounts
from podidentity.webhook.app import BODY_LIMIT_BYTES, App
from podidentity.webhook.metrics import Metrics
from podidentity.webhook.settings import Settings

CONNECTIONS = 1024
"""The API server alone connects, from one address for each of its replicas."""


class Parts(NamedTuple):
    """Everything that the webhook consists of."""

    app: App
    server: Server
    certificates: Certificates
    metrics: Metrics


def assemble(settings: Settings, api: Api, clock: Clock) -> Parts:
    """Build and connect everything."""
    metrics = Metrics(make_registry())
    app = App(settings.rules, KubernetesAccounts(api, clock), metrics)
    server = Server(app.answer, Places(CONNECTIONS, CONNECTIONS), lambda: None, body_limit_bytes=BODY_LIMIT_BYTES)
    service = f"{settings.service}.{settings.namespace}.svc"
    of_certificates = CertificateSettings(
        ObjectKey(settings.namespace, settings.secret),
        (service, f"{service}.cluster.local"),
        minimum_tls=settings.minimum_tls,
    )
    certificates = Certificates(api, of_certificates, (BundleWebhook(settings.configuration),), clock)
    return Parts(app, server, certificates, metrics)
