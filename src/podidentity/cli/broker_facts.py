"""Gathers what `doctor` and `explain` must know of the brokers of a cluster."""

import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

import httpx2

from podidentity.certificates.authority import read_certificates, validity_of
from podidentity.cli import broker as broker_flags
from podidentity.cli import flags
from podidentity.core.model.identities import ObjectKey
from podidentity.core.report import issuers
from podidentity.core.report.brokers import Authority, Broker, BrokerFacts, MissingCredential
from podidentity.core.report.findings import Finding
from podidentity.core.report.issuers import CONFIGURATION_PATH, IssuerDocuments
from podidentity.errors import NotFoundError
from podidentity.http import json_object, read_body
from podidentity.kube import grants, resources
from podidentity.kube.api import Api, Selection
from podidentity.kube.issuer import read_issuer
from podidentity.timing import parse_rfc3339

T = TypeVar("T")
Json = Mapping[str, Any]

MISSING_REASON = "FederatedCredentialMissing"
_NAME_LABEL = "app.kubernetes.io/name"
_NAME = "podidentity-broker"
_IMAGE = re.compile(r"(?:.*/)?podidentity/broker(?:[:@].*)?")
_IDENTITY = re.compile(r"on identity ([0-9a-f-]{36})")
_DOCUMENT_BYTES = 1024 * 1024
_FETCH_SECONDS = 10.0


async def find_brokers(api: Api) -> tuple[Broker, ...]:
    """Return the brokers of all namespaces, by their label, image or command line. Raises KubernetesError."""
    deployments = await api.list(resources.DEPLOYMENTS)
    candidates = [_broker(key, item.value) for key, item in sorted(deployments.items.items())]
    return tuple(broker for broker in candidates if broker is not None)


async def gather(api: Api, attempt: Callable[..., Awaitable[Any]]) -> BrokerFacts:
    """Return the facts of all brokers. `attempt(check, request, otherwise)` takes note of what cannot be seen."""
    brokers: tuple[Broker, ...] = await attempt("broker", find_brokers(api), ())
    if not brokers:
        return BrokerFacts()
    cluster = await attempt("issuer", read_issuer(api), IssuerDocuments())
    issuer = str((cluster.configuration or {}).get("issuer", ""))
    authorities = {}
    for broker in brokers:
        authority = await attempt("ca", _authority(api, broker), None)
        if authority is not None:
            authorities[broker.key] = authority
    return BrokerFacts(
        brokers,
        issuer,
        await judge_issuer(issuer, cluster) if issuer else (),
        authorities,
        await attempt("grants", grants.find_grants(api), {}),
        await attempt("events", _events(api, brokers), ()),
        now=time.time(),
    )


async def judge_issuer(issuer: str, cluster: IssuerDocuments | None) -> tuple[Finding, ...]:
    """Return the findings on an issuer; its documents are fetched only from a public address."""
    address = issuers.judge_address(issuer)
    if issuers.refuse_address(issuer):
        return (address,)
    return (address, *issuers.judge(issuer, await fetch_issuer(issuer), cluster))


async def fetch_issuer(issuer: str) -> IssuerDocuments:
    """Fetch what an issuer publishes, as Entra ID does: the document below its address, then the keys that it names."""
    async with httpx2.AsyncClient(timeout=_FETCH_SECONDS, follow_redirects=False) as http:
        address = issuer.rstrip("/") + CONFIGURATION_PATH
        try:
            configuration = await _fetch(http, address)
        except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
            return IssuerDocuments(failure=f"{address}: {_reason(error)}")
        address = str(configuration.get("jwks_uri", ""))
        try:
            return IssuerDocuments(configuration, await _fetch(http, address))
        except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
            return IssuerDocuments(configuration, failure=f"{address or 'no jwks_uri'}: {_reason(error)}")


async def _fetch(http: httpx2.AsyncClient, address: str) -> Mapping[str, Any]:
    async with http.stream("GET", address) as response:
        body = await read_body(response, _DOCUMENT_BYTES)
        if not response.is_success:
            raise ValueError(f"it answers {response.status_code}")
        document = json_object(body or b"")
    if not document:
        raise ValueError("it answers without a JSON object")
    return document


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _broker(key: ObjectKey, deployment: Json) -> Broker | None:
    spec = deployment.get("spec") or {}
    pod = (spec.get("template") or {}).get("spec") or {}
    labels = (deployment.get("metadata") or {}).get("labels") or {}
    containers: Sequence[Json] = pod.get("containers") or ()
    is_labelled = labels.get(_NAME_LABEL) == _NAME
    container = next(
        (item for item in containers if _runs_broker(item)), containers[0] if is_labelled and containers else None
    )
    if container is None:
        return None
    words = [str(word) for word in container.get("args") or () if word not in {"broker", "podidentity"}]
    options, _ = flags.parse_leniently("podidentity broker", broker_flags.TABLE, words)
    return Broker(
        key,
        options.text("name"),
        str(pod.get("serviceAccountName") or "default"),
        int(spec.get("replicas", 1)),
        int((deployment.get("status") or {}).get("readyReplicas") or 0),
        _audience(pod, container, options.text("token-file")),
        options.text("audience"),
        frozenset(map(str.lower, options.list("allowed-identities"))),
        tuple(options.list("bundle-namespaces")),
        frozenset(options.list("nmi-service-accounts")),
    )


def _runs_broker(container: Json) -> bool:
    words = [
        str(word).rpartition("/")[2] for word in (*(container.get("command") or ()), *(container.get("args") or ()))
    ]
    is_command = "broker" in words[:3] and (not container.get("command") or "podidentity" in words)
    return _IMAGE.fullmatch(str(container.get("image") or "")) is not None or is_command


def _audience(pod: Json, container: Json, file: str) -> str:
    """Return the audience of the token that is projected to `file`; "" when none is."""
    volumes = {volume.get("name"): volume for volume in pod.get("volumes") or ()}
    for mount in container.get("volumeMounts") or ():
        projected = volumes.get(mount.get("name"), {}).get("projected") or {}
        for source in projected.get("sources") or ():
            token = source.get("serviceAccountToken") or {}
            if token and f"{str(mount.get('mountPath')).rstrip('/')}/{token.get('path')}" == file:
                return str(token.get("audience") or "")
    return ""


async def _authority(api: Api, broker: Broker) -> Authority:
    """Return a broker's CA and the places of its bundle. Raises KubernetesError but for what is not there."""
    name = f"{broker.name}-ca"
    try:
        secret = await api.get(resources.SECRETS, ObjectKey(broker.key.namespace, name))
        certificates = read_certificates(secret.values.get("ca.crt", b""))
    except (NotFoundError, ValueError):
        certificates = ()
    if not certificates:
        return Authority()
    missing, outdated = [], []
    for namespace in (broker.key.namespace, *broker.bundle_namespaces):
        key = ObjectKey(namespace, name)
        bundle = await _bundle(api, key)
        if not bundle:
            missing.append(key)
        elif certificates[0] not in bundle:
            outdated.append(key)
    return Authority(validity_of(certificates[0]), tuple(missing), tuple(outdated))


async def _bundle(api: Api, key: ObjectKey) -> tuple[Any, ...]:
    try:
        config_map = await api.get(resources.CONFIG_MAPS, key)
        return read_certificates(str((config_map.get("data") or {}).get("ca.crt", "")).encode())
    except (NotFoundError, ValueError):
        return ()


async def _events(api: Api, brokers: Sequence[Broker]) -> tuple[MissingCredential, ...]:
    """Return the brokers' events about missing credentials. Raises KubernetesError."""
    results = []
    for namespace in sorted({broker.key.namespace for broker in brokers}):
        events = await api.list(resources.EVENTS, Selection(namespace, fields=f"reason={MISSING_REASON}"))
        results += [_event(event) for event in events.values if event.get("reason") == MISSING_REASON]
    return tuple(event for event in results if event is not None)


def _event(event: Json) -> MissingCredential | None:
    match = _IDENTITY.search(str(event.get("message") or event.get("note") or ""))
    if match is None:
        return None
    series = event.get("series") or {}
    moments = (series.get("lastObservedTime"), event.get("lastTimestamp"), event.get("eventTime"))
    seconds = next((parse_rfc3339(str(moment)) for moment in moments if moment), None)
    subject = event.get("involvedObject") or event.get("regarding") or {}
    account = ObjectKey(str(subject.get("namespace", "")), str(subject.get("name", "")))
    return MissingCredential(account, match[1], 0.0 if seconds is None else time.time() - seconds)
