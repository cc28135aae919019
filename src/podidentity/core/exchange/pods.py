"""What a node's NMI may ask for: tokens of pods that run on its node, and of nothing else.

NMI proves itself with its own token, which the API server has bound to its pod and node; which node that is, is taken
from the API server's answer and never from the request. A compromised node so gets what its own pods may have.
"""

from collections.abc import Collection
from typing import NamedTuple

from podidentity.core.exchange.callers import Caller
from podidentity.core.exchange.requests import PodReference, Refusal
from podidentity.core.model.snapshot import Pod


class NodeDaemon(NamedTuple):
    """An NMI that the API server vouches for, and the node on which its pod runs; "" where the token does not say."""

    caller: Caller
    node: str


def node_daemon(caller: Caller, accounts: Collection[str]) -> NodeDaemon | Refusal:
    """Return the NMI that `caller` is. `accounts` are NMI's service accounts, as `namespace/name`."""
    if caller.key not in accounts:
        message = f"service account {caller.key} may not ask for pods' tokens; only NMI may (--nmi-service-accounts)"
        return Refusal(403, "unauthorized_client", message)
    return NodeDaemon(caller, caller.node)


def locate(daemon: NodeDaemon, own_pod: Pod | None) -> NodeDaemon | Refusal:
    """Return the NMI with its node, read from its own pod: tokens before Kubernetes 1.32 do not name it."""
    if own_pod is None or own_pod.uid != daemon.caller.pod_uid or not own_pod.node:
        return Refusal(401, "invalid_client", f"pod {daemon.caller.namespace}/{daemon.caller.pod} is on no node")
    return daemon._replace(node=own_pod.node)


def pod_caller(daemon: NodeDaemon, reference: PodReference, pod: Pod | None) -> Caller | Refusal:
    """Return the service account that a pod runs as, with which it is judged like one that asks by itself."""
    if pod is None or pod.uid != reference.uid:
        return Refusal(404, "invalid_request", f"there is no pod {reference.key} with UID {reference.uid}")
    if pod.node != daemon.node:
        message = f"pod {reference.key} does not run on node {daemon.node}, whose NMI asks for its token"
        return Refusal(403, "unauthorized_client", message)
    if not pod.live:
        return Refusal(403, "unauthorized_client", f"pod {reference.key} has ended")
    account = pod.service_account or "default"
    groups = ("system:serviceaccounts", f"system:serviceaccounts:{reference.namespace}", "system:authenticated")
    return Caller(
        reference.namespace,
        account,
        f"system:serviceaccount:{reference.namespace}:{account}",
        groups=groups,
        pod=reference.name,
        pod_uid=reference.uid,
        node=pod.node,
    )
