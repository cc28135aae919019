"""The health of the brokers of a cluster: facts in, findings out."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from podidentity.core.certificates.replacement import Validity
from podidentity.core.exchange.callers import AUDIENCE
from podidentity.core.exchange.grants import GROUP
from podidentity.core.model import federation
from podidentity.core.model.federation import FederatedCredential
from podidentity.core.model.identities import ObjectKey
from podidentity.core.model.wording import some_of
from podidentity.core.report import diagnosing, trusts
from podidentity.core.report.diagnosing import Facts
from podidentity.core.report.findings import Finding, note, ok, problem, unknown
from podidentity.core.report.trusts import Trust

CREDENTIAL_NAME = "podidentity-broker"
EVENT_SECONDS = 3600.0
"""How long an event about a missing credential counts: the broker repeats it while somebody asks in vain."""
_LAST_SHARE = 0.25
"""A CA is replaced after two thirds of its life, so that one in its last quarter is not being replaced."""
_NAMES = 5
_OF_MACHINES = frozenset({"assigned", "identities", "bindings", "leader"})
"""Checks that nobody misses where only brokers run: they read what MIC and NMI work with."""


@dataclass(frozen=True, slots=True)
class Broker:
    """One Deployment. `name` is that of its service, `audience` that of its own token for Entra ID; "" without one.

    `identities` are the client IDs that it gives tokens of; empty: all. `pod_audience` is that of pods' tokens.
    `node_daemons` are the service accounts of NMI, as namespace/name, whose word it takes.
    """

    key: ObjectKey
    name: str
    account: str
    replicas: int
    ready: int
    audience: str = ""
    pod_audience: str = AUDIENCE
    identities: frozenset[str] = frozenset()
    bundle_namespaces: tuple[str, ...] = ()
    node_daemons: frozenset[str] = frozenset()

    @property
    def subject(self) -> str:
        """What identities must trust."""
        return federation.subject_of(self.key.namespace, self.account)

    def credential(self, issuer: str) -> FederatedCredential:
        """Return the credential that each of its identities needs."""
        return FederatedCredential(CREDENTIAL_NAME, issuer, self.subject, self.audience)


@dataclass(frozen=True, slots=True)
class Authority:
    """A broker's CA as its Secret has it, and the places of its bundle.

    `validity` is None without a certificate. `missing_bundles` are ConfigMaps that are not there or empty, and
    `outdated_bundles` those without the CA in use.
    """

    validity: Validity | None = None
    missing_bundles: tuple[ObjectKey, ...] = ()
    outdated_bundles: tuple[ObjectKey, ...] = ()


@dataclass(frozen=True, slots=True)
class MissingCredential:
    """A broker's event: Entra ID knew no credential for it on an identity, so many seconds ago."""

    account: ObjectKey
    client_id: str
    age_seconds: float


@dataclass(frozen=True, slots=True)
class BrokerFacts:
    """The facts of all brokers of a cluster. What is absent was not to be seen, and `unavailable` says why.

    `issuer` is the API server's, "" when it could not be seen; `issuer_findings` judge what it publishes. `grants` say
    of each client ID in a ClusterRole whether any ClusterRoleBinding refers to it. `trusts` are None without Azure.
    """

    brokers: tuple[Broker, ...] = ()
    issuer: str = ""
    issuer_findings: tuple[Finding, ...] = ()
    authorities: Mapping[ObjectKey, Authority] = field(default_factory=dict)
    grants: Mapping[str, bool] = field(default_factory=dict)
    events: tuple[MissingCredential, ...] = ()
    trusts: Mapping[str, Trust] | None = None
    now: float = 0.0
    unavailable: tuple[tuple[str, str], ...] = ()


def diagnose_all(facts: Facts, brokers: BrokerFacts) -> tuple[Finding, ...]:
    """Return the findings on the machines' daemons and the brokers; where there are brokers alone, on these alone."""
    if brokers.brokers and not (facts.definitions or facts.mic or facts.nmi):
        unavailable = [unknown(*failure) for failure in facts.unavailable if failure[0] not in _OF_MACHINES]
        return (ok("api server", facts.server), *unavailable, *diagnose(brokers))
    return (*diagnosing.diagnose(facts), *diagnose(brokers))


def diagnose(facts: BrokerFacts) -> tuple[Finding, ...]:
    """Return what is well and what is not; nothing where there is no broker."""
    unavailable = tuple(unknown(check, message) for check, message in facts.unavailable)
    if not facts.brokers:
        return unavailable
    return (
        *unavailable,
        *(finding for broker in facts.brokers for finding in _broker(broker, facts)),
        *facts.issuer_findings,
        *_grants(facts),
        *_credentials(facts),
    )


def _broker(broker: Broker, facts: BrokerFacts) -> Iterator[Finding]:
    deployment = f"-n {broker.key.namespace} {{}} deployment/{broker.key.name}"
    if broker.ready >= broker.replicas > 0:
        yield ok("broker", f"{broker.key}: {broker.ready} of {broker.replicas} replicas are ready")
    elif broker.ready:
        message = f"{broker.key}: {broker.ready} of {broker.replicas} replicas are ready"
        yield note("broker", message, f"kubectl {deployment.format('describe')}")
    else:
        message = f"{broker.key}: none of {broker.replicas} replicas is ready: its pods get no tokens"
        todo = f"kubectl {deployment.format('logs')}"
        yield problem(
            "broker", message, todo if broker.replicas else f"kubectl {deployment.format('scale')} --replicas=2"
        )
    if not broker.audience:
        message = f"{broker.key} has no projected token for Entra ID at its --token-file"
        yield problem("broker", message, "project one with audience api://AzureADTokenExchange: deploy/broker has it")
    if broker.key in facts.authorities:
        yield from _authority(broker, facts.authorities[broker.key], facts.now)


def _authority(broker: Broker, authority: Authority, now: float) -> Iterator[Finding]:
    secret = f"Secret {broker.key.namespace}/{broker.name}-ca"
    renewal = (
        f"kubectl -n {broker.key.namespace} annotate secret {broker.name}-ca --overwrite podidentity.io/replace-ca=now"
    )
    validity = authority.validity
    if validity is None:
        message = f"{secret} has no CA: clients cannot verify the broker"
        yield problem("ca", message, f"create it empty, as deploy/broker/broker.yaml has it; {_restart(broker)}")
        return
    days = (validity.end - now) / 86_400
    if validity.end - now < (validity.end - validity.start) * _LAST_SHARE:
        yield problem("ca", f"{secret}: its CA ends in {days:.0f} days and is not being replaced", renewal)
    if authority.missing_bundles:
        names = some_of(map(str, authority.missing_bundles), _NAMES)
        message = f"ConfigMap {names} is missing or empty: pods there cannot verify the broker"
        yield problem("ca", message, "create it as deploy/broker/bundle.yaml has it; the broker fills it")
    if authority.outdated_bundles:
        names = some_of(map(str, authority.outdated_bundles), _NAMES)
        yield problem(
            "ca", f"ConfigMap {names} lacks the CA in use: pods there cannot verify the broker", _restart(broker)
        )
    if not authority.missing_bundles and not authority.outdated_bundles:
        yield ok("ca", f"{secret}: its CA is valid for {days:.0f} days, and published")


def _restart(broker: Broker) -> str:
    return f"kubectl -n {broker.key.namespace} rollout restart deployment/{broker.key.name}"


def _grants(facts: BrokerFacts) -> Iterator[Finding]:
    unbound = sorted(client_id for client_id, is_bound in facts.grants.items() if not is_bound)
    if not facts.grants:
        message = f"no ClusterRole grants an identity (apiGroup {GROUP}): nobody gets a token"
        yield note("grants", message, "create one as deploy/broker/grant.yaml has it")
    if unbound:
        message = f"granted by a ClusterRole that nobody is bound to: {some_of(unbound, _NAMES)}"
        yield note(
            "grants",
            message,
            "kubectl create clusterrolebinding NAME --clusterrole=ROLE --serviceaccount=NAMESPACE:NAME",
        )
    for client_id in sorted(facts.grants):
        if not _brokers_of(facts, client_id):
            message = f"identity {client_id} is granted, and no broker's allowedIdentities has it"
            yield problem("grants", message, "add it to --allowed-identities of a broker, or delete the ClusterRole")
    if facts.grants and not unbound:
        yield ok("grants", f"{len(facts.grants)} identities are granted by ClusterRoles")


def _brokers_of(facts: BrokerFacts, client_id: str) -> tuple[Broker, ...]:
    return tuple(broker for broker in facts.brokers if not broker.identities or client_id in broker.identities)


def _credentials(facts: BrokerFacts) -> Iterator[Finding]:
    """Yield what Azure says of the identities; of those that it was not asked about, what the broker's events say."""
    for client_id in sorted(facts.grants):
        trust = (facts.trusts or {}).get(client_id)
        if trust is not None and facts.issuer:
            for broker in _trusting(trust, facts.issuer, _brokers_of(facts, client_id)):
                yield from trusts.judge_trust(trust, broker.credential(facts.issuer))
    recent = [event for event in facts.events if event.age_seconds <= EVENT_SECONDS]
    for broker in facts.brokers:
        account = ObjectKey(broker.key.namespace, broker.account)
        for client_id in sorted({event.client_id for event in recent if event.account == account}):
            if not _was_seen(facts, client_id):
                message = f"Entra ID found no federated credential for {broker.subject} on identity {client_id}"
                command = federation.unplaced_command(broker.credential(facts.issuer or "ISSUER"))
                yield problem(trusts.CHECK, f"{message} within the last hour", command)


def _trusting(trust: Trust, issuer: str, brokers: tuple[Broker, ...]) -> tuple[Broker, ...]:
    """Return the brokers that an identity trusts: one is enough. When it trusts none, all that may serve it."""
    complete = tuple(broker for broker in brokers if broker.audience)
    return tuple(item for item in complete if trusts.has_trust(trust, item.credential(issuer))) or complete


def _was_seen(facts: BrokerFacts, client_id: str) -> bool:
    trust = (facts.trusts or {}).get(client_id)
    return trust is not None and not trust.failure
