"""The health of NMI's doors through the broker: facts in, findings out.

Three programs must agree on them: NMI, which serves the token-file door on each node and asks the broker in its pods'
names; the webhook, which sends pods to that door; and the broker, which takes NMI's word and pods' tokens.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from podidentity.core.injection.rules import USE_LABEL
from podidentity.core.model.identities import ObjectKey
from podidentity.core.model.wording import some_of
from podidentity.core.report.brokers import Broker
from podidentity.core.report.diagnosing import Daemon
from podidentity.core.report.findings import Finding, note, ok, problem

CHECK, BROKER_CHECK, WEBHOOK_CHECK = "token-file door", "nmi through the broker", "webhook"
_GUIDE = "docs/configure/nmi-through-the-broker.md"
_NAMES = 5


@dataclass(frozen=True, slots=True)
class NodeDoor:
    """One pod of NMI: the port of its token-file door, 0 without one, and the broker's address, "" without one."""

    daemon: Daemon
    port: int
    broker: str


@dataclass(frozen=True, slots=True)
class Webhook:
    """One Deployment: the port of nodes that it sends pods to, 0 for none; the audience of their tokens."""

    key: ObjectKey
    port: int
    audience: str
    replicas: int = 2
    ready: int = 2


@dataclass(frozen=True, slots=True)
class DoorFacts:
    """The facts of the doors of a cluster."""

    nodes: tuple[NodeDoor, ...] = ()
    webhooks: tuple[Webhook, ...] = ()
    brokers: tuple[Broker, ...] = ()


def diagnose(facts: DoorFacts) -> tuple[Finding, ...]:
    """Return what is well and what is not; nothing where there is no such door."""
    return (*map(_webhook, facts.webhooks), *_token_file(facts), *_node_daemons(facts))


def _webhook(webhook: Webhook) -> Finding:
    """Return whether a webhook answers: while none of it does, the API server refuses pods with the label."""
    count = f"{webhook.ready} of {webhook.replicas} replicas are ready"
    if webhook.ready >= webhook.replicas > 0:
        return ok(WEBHOOK_CHECK, f"{webhook.key}: {count}")
    todo = f"kubectl -n {webhook.key.namespace} describe deployment/{webhook.key.name}"
    if webhook.ready:
        return note(WEBHOOK_CHECK, f"{webhook.key}: {count}", todo)
    return problem(WEBHOOK_CHECK, f"{webhook.key}: {count}: pods with the label {USE_LABEL} are refused", todo)


def _token_file(facts: DoorFacts) -> Iterator[Finding]:
    ports = Counter(node.port for node in facts.nodes)
    offers = [webhook for webhook in facts.webhooks if webhook.port]
    faults = [finding for webhook in offers for finding in _offer(webhook, facts)]
    yield from faults
    if not faults and any(ports):
        port = max((port for port in ports if port), key=lambda port: ports[port])
        yield from _judge_port(port, facts)
        if facts.webhooks and not offers:
            message = f"NMI serves it on port {port}, and the webhook {facts.webhooks[0].key} offers it to no pod"
            yield note(CHECK, message, f"start the webhook with --token-file-port={port}")


def _judge_port(port: int, facts: DoorFacts) -> Iterator[Finding]:
    lagging_nodes = sorted(node.daemon.node for node in facts.nodes if node.port != port)
    unready_nodes = sorted(node.daemon.node for node in facts.nodes if node.port == port and not node.daemon.ready)
    if lagging_nodes:
        message = f"NMI does not serve it on port {port} of {some_of(lagging_nodes, _NAMES)}, as it does elsewhere"
        yield note(CHECK, message, "finish the DaemonSet's update; with updateStrategy OnDelete, delete these pods")
    elif unready_nodes:
        message = f"NMI is not ready on {some_of(unready_nodes, _NAMES)}: nothing may listen on port {port} there"
        daemon = next(node.daemon for node in facts.nodes if node.daemon.node == unready_nodes[0])
        yield problem(CHECK, message, f"kubectl -n {daemon.key.namespace} logs {daemon.key.name}")
    else:
        yield ok(CHECK, f"NMI serves it on port {port} of {len(facts.nodes)} nodes")


def _offer(webhook: Webhook, facts: DoorFacts) -> Iterator[Finding]:
    """Yield why the pods that a webhook sends to the door have no tokens there."""
    other_ports = sorted({node.port for node in facts.nodes} - {0, webhook.port})
    message = f"the webhook {webhook.key} sends pods to port {webhook.port} of their node"
    if not any(node.port == webhook.port for node in facts.nodes):
        if other_ports:
            numbers = ", ".join(map(str, other_ports))
            todo = f"give NMI and the webhook the same --token-file-port; see {_GUIDE}"
            yield problem(CHECK, f"{message}, and NMI serves the door on port {numbers}", todo)
        else:
            todo = f"start NMI with --token-file-port={webhook.port} and --broker; see {_GUIDE}"
            yield problem(CHECK, f"{message}, where NMI serves no door", todo)
    audiences = sorted({broker.pod_audience for broker in facts.brokers})
    if audiences and webhook.audience not in audiences:
        message = (
            f"the webhook {webhook.key} gives pods tokens of the audience {webhook.audience}, and no broker takes it"
        )
        todo = f"start it with --custom-token-endpoint-audience={audiences[0]}, which the broker takes"
        yield problem(CHECK, message, todo)


def _node_daemons(facts: DoorFacts) -> Iterator[Finding]:
    """Yield whether a broker takes the word of NMI's service account for the pods of its node."""
    accounts = sorted({f"{node.daemon.key.namespace}/{node.daemon.account}" for node in facts.nodes if node.broker})
    for account in accounts if facts.brokers else ():
        trusting = [broker for broker in facts.brokers if account in broker.node_daemons]
        if trusting:
            yield ok(BROKER_CHECK, f"broker {trusting[0].key} takes the word of {account} for its node's pods")
        else:
            message = (
                f"no broker takes the word of NMI's service account {account}: pods get none of its tokens by IMDS"
            )
            yield problem(
                BROKER_CHECK, message, f"start the broker with --nmi-service-accounts={account}; see {_GUIDE}"
            )
