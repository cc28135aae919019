"""From aad-pod-identity's and azure-workload-identity's objects to the manifests of another way of getting tokens.

What a manifest cannot say, or nobody but a person can decide, is a sentence.
"""

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from podidentity.core.exchange.grants import GROUP, VERB
from podidentity.core.injection import rules
from podidentity.core.model import crd, federation, matching
from podidentity.core.model.identities import AzureIdentity, AzureIdentityBinding, IdentityType, ObjectKey
from podidentity.core.model.snapshot import Pod
from podidentity.core.report import issuers
from podidentity.core.report.findings import Finding, note, ok, problem

Json = Mapping[str, Any]
_RBAC = "rbac.authorization.k8s.io"
_TEMPLATES = frozenset({"Deployment", "DaemonSet", "StatefulSet"})


class Way(StrEnum):
    """How pods get their tokens afterwards."""

    MACHINE = "machine"
    """From NMI, of identities on the node's machine, as with aad-pod-identity."""
    BROKER = "broker"
    """From NMI without a machine, for pods with bindings; from the token proxy for those with workload identity."""
    TOKEN_FILE = "token-file"  # noqa: S105  # a way
    """From NMI by the token-file door."""
    DIRECT = "direct"
    """From Entra ID itself, with a federated credential for each service account."""


@dataclass(frozen=True, slots=True)
class MigrationFacts:
    """A cluster's objects of both projects. `accounts` are annotations of service accounts that name a client ID.

    `pods` have the label of bindings or that of workload identity, which `workload_pods` lists. `issuer` may be "".
    """

    identities: tuple[AzureIdentity, ...] = ()
    bindings: tuple[AzureIdentityBinding, ...] = ()
    pods: tuple[Pod, ...] = ()
    workload_pods: frozenset[ObjectKey] = frozenset()
    accounts: Mapping[ObjectKey, Mapping[str, str]] = field(default_factory=dict)
    issuer: str = ""


@dataclass(frozen=True, slots=True)
class Migration:
    """What to apply, and what to know."""

    manifests: tuple[Json, ...]
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class _Use:
    """A service account that uses an identity, by a binding or (`identity` is None) by its annotation; and its pods."""

    account: ObjectKey
    client_id: str
    identity: AzureIdentity | None
    pods: tuple[Pod, ...] = ()


def plan(facts: MigrationFacts, way: Way) -> Migration:
    """Return the manifests of a way, and the findings on what they leave open."""
    uses = (*_uses_of_bindings(facts), *_uses_of_accounts(facts))
    manifests = {_name(item): item for use in uses for item in _manifests(use, way)}
    findings = [*_open_objects(facts), *_shared_accounts(uses, way)]
    for use in uses:
        findings += _steps(use, way, facts.issuer)
    refusal = issuers.refuse_address(facts.issuer) if uses and way is Way.DIRECT and facts.issuer else None
    if refusal:
        findings.append(note("issuer", refusal, "publish it first; see docs/configure/broker.md#the-issuer"))
    if uses and way is Way.TOKEN_FILE:
        message = "pods of this way ask NMI on their node, which serves the token-file door only where it is told to"
        todo = "give NMI --broker and --token-file-port, and the webhook the same --token-file-port"
        findings.append(note("nmi", message, f"{todo}; see docs/configure/nmi-through-the-broker.md"))
    if not uses:
        findings.append(note("uses", "no pod is bound to an identity, and no service account names one"))
    return Migration(tuple(manifests.values()), tuple(dict.fromkeys(findings)))


def _uses_of_bindings(facts: MigrationFacts) -> Iterator[_Use]:
    selections = matching.Selections(
        facts.bindings, {item.key: item for item in facts.identities}, force_namespaced=False
    )
    pods: dict[tuple[ObjectKey, ObjectKey], list[Pod]] = {}
    for pod in facts.pods:
        for result in selections.results_for(pod):
            if isinstance(result, matching.Match) and _is_managed(result.identity) and result.identity.client_id:
                pods.setdefault((_account_of(pod), result.identity.key), []).append(pod)
    identities = {item.key: item for item in facts.identities}
    for (account, key), users in pods.items():
        identity = identities[key]
        yield _Use(account, identity.client_id.lower(), identity, tuple(users))


def _uses_of_accounts(facts: MigrationFacts) -> Iterator[_Use]:
    for account, annotations in facts.accounts.items():
        users = tuple(pod for pod in facts.pods if pod.key in facts.workload_pods and _account_of(pod) == account)
        yield _Use(account, annotations[rules.CLIENT_ID].strip().lower(), None, users)


def _is_managed(identity: AzureIdentity) -> bool:
    return identity.type in {IdentityType.USER_ASSIGNED, IdentityType.FEDERATED}


def _account_of(pod: Pod) -> ObjectKey:
    return ObjectKey(pod.key.namespace, pod.service_account or "default")


def _manifests(use: _Use, way: Way) -> Iterator[Json]:
    if use.identity is not None and way in {Way.MACHINE, Way.BROKER}:
        kind = IdentityType.FEDERATED if way is Way.BROKER else IdentityType.USER_ASSIGNED
        if use.identity.type != kind:
            yield crd.render_identity(replace(use.identity, type=kind))
    if way in {Way.BROKER, Way.TOKEN_FILE}:
        yield from _grant(use.account, use.client_id)
    if use.identity is not None and way in {Way.TOKEN_FILE, Way.DIRECT}:
        annotations = {rules.CLIENT_ID: use.client_id}
        metadata = {**use.account._asdict(), "annotations": annotations}
        yield {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}


def _grant(account: ObjectKey, client_id: str) -> tuple[Json, Json]:
    """Return the ClusterRole of an identity and its binding to a service account."""
    role = {
        "apiVersion": f"{_RBAC}/v1",
        "kind": "ClusterRole",
        "metadata": {"name": f"identity-{client_id}"},
        "rules": [{"apiGroups": [GROUP], "resources": [client_id], "verbs": [VERB]}],
    }
    binding = {
        "apiVersion": f"{_RBAC}/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": f"identity-{client_id}-{account.namespace}-{account.name}"},
        "subjects": [{"kind": "ServiceAccount", "namespace": account.namespace, "name": account.name}],
        "roleRef": {"apiGroup": _RBAC, "kind": "ClusterRole", "name": f"identity-{client_id}"},
    }
    return role, binding


def _name(manifest: Json) -> tuple[str, str, str]:
    metadata = manifest["metadata"]
    return manifest["kind"], metadata.get("namespace", ""), metadata["name"]


def _open_objects(facts: MigrationFacts) -> Iterator[Finding]:
    """Yield what is left as it is, and why."""
    for identity in facts.identities:
        if not _is_managed(identity):
            message = f"AzureIdentity {identity.key} is a service principal with a Secret: it is left as it is"
            yield note("identity", message, "NMI goes on serving it; or use a managed identity in its place")
        elif not identity.client_id:
            message = f"AzureIdentity {identity.key} has no clientID: nothing can be granted or trusted without it"
            yield problem("identity", message, f"az identity show --ids {identity.resource_id} --query clientId")
    selectors = {pod.selector for pod in facts.pods}
    for binding in facts.bindings:
        if binding.selector not in selectors:
            message = f"binding {binding.key} selects no pod now: which service accounts it is for cannot be seen"
            yield note("binding", message, "scale its workload up and migrate again, or write its grant by hand")


def _shared_accounts(uses: tuple[_Use, ...], way: Way) -> Iterator[Finding]:
    """Yield what is wider than before: a grant is for all pods of a service account, a binding was for a label's."""
    if way is Way.MACHINE:
        return
    client_ids: dict[ObjectKey, list[str]] = {}
    for use in uses:
        client_ids.setdefault(use.account, []).append(use.client_id)
    for account, identities in client_ids.items():
        if account.name == "default":
            message = f"service account {account} is that of every pod that names none"
            yield problem(
                "account",
                f"{message}: each of them could use {identities[0]}",
                "give the pods a service account of their own first",
            )
        if len(set(identities)) > 1 and way is not Way.BROKER:
            message = f"service account {account} uses {len(set(identities))} identities, and its annotation names one"
            yield problem("account", message, "let the programs name their client ID, or part the service accounts")


def _steps(use: _Use, way: Way, issuer: str) -> Iterator[Finding]:
    """Yield what is to be done for one service account besides applying the manifests."""
    name = f"service account {use.account}, identity {use.client_id}"
    if way is Way.MACHINE:
        if use.identity is not None:
            yield ok("use", f"{name}: stays with its AzureIdentity {use.identity.key}")
        else:
            todo = "write an AzureIdentity with its resourceID and a binding, and label the pods"
            yield problem("use", f"{name}: has no AzureIdentity, and its resource ID is not in the cluster", todo)
        return
    yield ok("use", f"{name}: {len(use.pods)} pods")
    if way is Way.DIRECT:
        subject = f"--service-account {use.account} {f'--issuer {issuer}' if issuer else ''}".strip()
        message = f"identity {use.client_id} must trust {federation.subject_of(*use.account)}"
        yield note("credential", message, f"podidentity credential create --identity {use.client_id} {subject}")
    template = _template(use, way)
    if template:
        owners = sorted({_owner(pod) for pod in use.pods})
        for kind, owner in owners:
            yield _change(use.account.namespace, kind, owner, template)


def _template(use: _Use, way: Way) -> Json:
    """Return what pods' templates need; {} when they can stay.

    NMI serves pods with bindings as before, and pods with workload identity go to Entra ID already.
    """
    if way is (Way.DIRECT if use.identity is None else Way.BROKER):
        return {}
    annotations = {
        Way.BROKER: {f"{rules.PREFIX}use-identity-binding": "true"},
        Way.TOKEN_FILE: {rules.DOOR: rules.Door.TOKEN_FILE.value},
    }.get(way, {})
    metadata: dict[str, Any] = {"labels": {rules.USE_LABEL: "true"}}
    if annotations:
        metadata["annotations"] = annotations
    return metadata


def _owner(pod: Pod) -> tuple[str, str]:
    """Return kind and name of what made a pod: of a ReplicaSet its Deployment; a pod of its own is itself."""
    if pod.owner is None:
        return "Pod", pod.key.name
    kind, name = pod.owner
    return ("Deployment", name.rpartition("-")[0]) if kind == "ReplicaSet" and "-" in name else (kind, name)


def _change(namespace: str, kind: str, name: str, metadata: Json) -> Finding:
    message = f"{kind} {namespace}/{name}: its pods need {json.dumps(metadata)}"
    if kind not in _TEMPLATES:
        return problem("template", message, "change its template where it is written; this cannot be patched in place")
    patch = shlex.quote(json.dumps({"spec": {"template": {"metadata": metadata}}}))
    return note("template", message, f"kubectl -n {namespace} patch {kind.lower()} {name} --type=merge -p {patch}")
