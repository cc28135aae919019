"""Builds the parts of the broker and connects them; nothing runs yet."""

import asyncio
from pathlib import Path
from typing import NamedTuple

import httpx2

from podidentity.broker.access import Access, AccessRules
from podidentity.broker.adapters.entra import Exchange as EntraExchange
from podidentity.broker.app import App, Cloud
from podidentity.broker.exchange import Exchange
from podidentity.broker.metrics import Audit, Metrics
from podidentity.broker.ports import Pods, Reviews
from podidentity.broker.settings import Settings
from podidentity.broker.spreading import Missing, SpreadingTokens, ThrottledTokens
from podidentity.core.exchange.callers import credential_of
from podidentity.core.exchange.requests import BODY_LIMIT_BYTES
from podidentity.errors import ConfigurationError
from podidentity.https.places import Places
from podidentity.https.server import Server
from podidentity.issuance.cache import TokenCache
from podidentity.issuance.fairness import FairQuota
from podidentity.issuance.limits import LimitedTokens
from podidentity.issuance.measured import MeasuredTokens
from podidentity.issuance.ports import Tokens
from podidentity.serving.logs import Lines
from podidentity.timing import Clock

EXCHANGES_PER_SECOND = 50.0
EXCHANGES_AT_ONCE = 64
EXCHANGES_OF_ONE_IDENTITY = 8  # at once, for its different resources
LONG_BODIES, LONG_BODIES_OF_ONE_ADDRESS = 256, 32  # at once: a token request has some 2 KiB
FIRSTS_PER_NAMESPACE = 20  # a second; one for each identity and resource is all that a namespace needs in an hour


class Clients(NamedTuple):
    """Ways to the API server and to Entra ID; `on_missing` is told once of each identity without a credential."""

    reviews: Reviews
    pods: Pods
    entra: httpx2.AsyncClient
    on_missing: Missing


class Parts(NamedTuple):
    """Everything that answers callers."""

    app: App
    server: Server
    metrics: Metrics


def assemble(settings: Settings, metrics: Metrics, clients: Clients, clock: Clock, tasks: asyncio.TaskGroup) -> Parts:
    """Build and connect everything. Raises `ConfigurationError` when the broker's own token cannot be read."""
    cloud = Cloud(settings.tenant_id, settings.authority, read_credential(settings.token_file))
    sources = _sources(settings, metrics, clients, clock)
    cache = TokenCache(sources, clock, tasks.create_task, firsts_per_asker=FIRSTS_PER_NAMESPACE)
    rules = AccessRules(settings.audience, settings.identities, settings.unbound_tokens, settings.node_daemons)
    exchange = Exchange(settings.tenant_id, cache, sources, clock)
    audit = Audit(metrics, Lines(settings.log_format, "audit"), clock)
    app = App(cloud, Access(clients.reviews, clients.pods, clock, rules), exchange, audit, clock)
    places = Places()
    metrics.connections.set_function(lambda: places.count)
    server = Server(
        app.answer,
        places,
        metrics.refused_connections.inc,
        body_limit_bytes=BODY_LIMIT_BYTES,
        long_bodies=FairQuota(LONG_BODIES, LONG_BODIES_OF_ONE_ADDRESS),
    )
    return Parts(app, server, metrics)


def _sources(settings: Settings, metrics: Metrics, clients: Clients, clock: Clock) -> Tokens:
    """Return Entra ID behind its limits: pauses and a share for each identity, and patience with new credentials."""
    exchange: Tokens = EntraExchange(clients.entra, settings.authority, settings.token_file, clock)
    limited = LimitedTokens(
        MeasuredTokens(exchange, metrics.note_call),
        clock,
        per_second=EXCHANGES_PER_SECOND,
        at_once=EXCHANGES_AT_ONCE,
        per_asker=EXCHANGES_OF_ONE_IDENTITY,
        shared_pause=False,
    )
    return SpreadingTokens(ThrottledTokens(limited, clock), clock, clients.on_missing)


def read_credential(token_file: Path) -> str:
    """Return what a federated credential for this broker must name. Raises `ConfigurationError`."""
    try:
        credential = credential_of(token_file.read_text(encoding="ascii").strip())
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{token_file}: the broker's own token cannot be read: {error}") from error
    if credential is None:
        raise ConfigurationError(f"{token_file}: this is no service account token; project the broker's own there")
    return credential
