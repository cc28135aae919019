"""What a pod with workload identity would get: by which door, for which identity, and whether it may.

The pod is read as it runs, whoever wrote its variables and volumes: the webhook, a manifest, another project.
"""

import json
import posixpath
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from podidentity.core.exchange.callers import AUDIENCE
from podidentity.core.exchange.grants import GROUP, VERB
from podidentity.core.injection.rules import CLIENT_ID, USE_LABEL, Door
from podidentity.core.model import federation
from podidentity.core.model.federation import (
    EXCHANGE_AUDIENCE,
    TOKEN_FILE_DIRECTORY,
    TOKEN_FILE_PATH,
    FederatedCredential,
)
from podidentity.core.model.identities import ObjectKey
from podidentity.core.report.findings import Finding, note, ok, problem, unknown

Json = Mapping[str, Any]
_DOORS = {
    Door.DIRECT: "direct: the program exchanges its service account token at Entra ID",
    Door.PROXY: "the token proxy: the program sends its service account token to the broker",
    Door.TOKEN_FILE: "the token file: the program asks NMI on its node",
}
_DOOR_VARIABLES = frozenset({"AZURE_KUBERNETES_TOKEN_PROXY", "AZURE_FEDERATED_TOKEN_FILE", "IDENTITY_ENDPOINT"})
_SWITCH = "the program needs its SDK's switch, such as enable_azure_proxy=True"


@dataclass(frozen=True, slots=True)
class WorkloadCase:
    """A pod as the API has it, and what its token depends on.

    `account` has the annotations of its service account; None when there is no such account. `is_granted` says whether
    that account may use the pod's identity; None when it was not to be seen. `roles` are ClusterRoles that grant it.
    `audience` is that of pods' tokens for the broker; `issuer` the API server's, "" when it was not to be seen.
    `token_file_port` is NMI's, 0 when NMI does not serve the token-file door, None when NMI was not to be seen.
    """

    pod: Json
    account: Mapping[str, str] | None = field(default_factory=dict)
    is_granted: bool | None = None
    roles: tuple[str, ...] = ()
    audience: str = AUDIENCE
    issuer: str = ""
    token_file_port: int | None = None

    @property
    def key(self) -> ObjectKey:
        """The pod's namespace and name."""
        metadata = self.pod.get("metadata") or {}
        return ObjectKey(metadata.get("namespace", ""), metadata.get("name", ""))

    @property
    def account_key(self) -> ObjectKey:
        """The pod's service account."""
        return ObjectKey(self.key.namespace, _spec(self.pod).get("serviceAccountName") or "default")


def door_of(pod: Json) -> Door | None:
    """Return the door that a pod's variables lead to; None when it has none."""
    settings = _variables(pod)
    if "AZURE_KUBERNETES_TOKEN_PROXY" in settings:
        return Door.PROXY
    if "IDENTITY_ENDPOINT" in settings and "IMDS_ENDPOINT" in settings:
        return Door.TOKEN_FILE
    return Door.DIRECT if "AZURE_FEDERATED_TOKEN_FILE" in settings else None


def concerns(pod: Json) -> bool:
    """Whether a pod has anything of workload identity: its label, or its variables."""
    return door_of(pod) is not None or _labels(pod).get(USE_LABEL) == "true"


def client_id_of(pod: Json, account: Mapping[str, str] | None) -> str:
    """Return the client ID of the identity that a pod uses unless its program names another; "" without one."""
    settings = _variables(pod)
    if door_of(pod) is Door.TOKEN_FILE:
        _, _, client_id = settings["IDENTITY_ENDPOINT"].partition(f"{TOKEN_FILE_PATH}/")
        return client_id.lower()
    return (settings.get("AZURE_CLIENT_ID") or (account or {}).get(CLIENT_ID, "").strip()).lower()


def explain(case: WorkloadCase) -> tuple[Finding, ...]:
    """Return the findings on a token request of this pod; the last one is the outcome."""
    return tuple(_story(case))


def _story(case: WorkloadCase) -> Iterator[Finding]:
    door = door_of(case.pod)
    if door is None:
        yield _slipped(case)
        return
    yield ok("door", _DOORS[door])
    faults = [*_token(case, door), *(_trust(case) if door is Door.PROXY else ())]
    faults += _service(case) if door is Door.TOKEN_FILE else ()
    client_id = client_id_of(case.pod, case.account)
    yield from faults
    if not client_id:
        message = f"neither the pod nor its service account {case.account_key} names an identity"
        todo = f"kubectl -n {case.key.namespace} annotate serviceaccount {case.account_key.name} {CLIENT_ID}=CLIENT_ID"
        yield note("identity", f"{message}: the program must name its client ID itself", todo)
        return
    yield ok("identity", f"client ID {client_id}")
    yield from _outcome(case, door, client_id, has_fault=bool(faults))


def _service(case: WorkloadCase) -> Iterator[Finding]:
    """Yield what is wrong with NMI as the pod's variables name it."""
    address = _variables(case.pod)["IDENTITY_ENDPOINT"].partition("://")[2].partition("/")[0]
    port = address.rpartition(":")[2]
    if case.token_file_port is not None and str(case.token_file_port) != port:
        message = f"the pod asks for the token-file door on port {port} of its node, and NMI does not serve it there"
        todo = f"set --token-file-port={port} and --broker on NMI (the chart's nmi.tokenFilePort and nmi.broker.url)"
        yield problem("nmi", message, todo)
    if "AZURE_CLIENT_ID" in _variables(case.pod):
        message = "AZURE_CLIENT_ID is set: DefaultAzureCredential sends it as a selector, which some SDKs refuse here"
        yield problem("selector", message, "take AZURE_CLIENT_ID out of the pod; IDENTITY_ENDPOINT names the identity")


def _slipped(case: WorkloadCase) -> Finding:
    message = f"pod {case.key} has the label {USE_LABEL}=true, and nothing was injected: it slipped past the webhook"
    todo = (
        f"see kubectl -n azure-workload-identity-system get pods, then kubectl -n {case.key.namespace} delete pod "
        f"{case.key.name}, for its controller to create it again"
    )
    return problem("webhook", message, todo)


def _token(case: WorkloadCase, door: Door) -> Iterator[Finding]:
    """Yield what is wrong with the projected token."""
    if door is Door.TOKEN_FILE:
        sources = [source for path, source in _tokens(case.pod) if path.startswith(f"{TOKEN_FILE_DIRECTORY}/")]
        place = TOKEN_FILE_DIRECTORY
    else:
        place = _token_file(case.pod)
        sources = _token_sources(case.pod)
    if not sources:
        message = f"no service account token is mounted at {place or 'AZURE_FEDERATED_TOKEN_FILE, which is not set'}"
        yield problem("token file", message, "mount a projected volume with a serviceAccountToken there")
        return
    audience = str(sources[0].get("audience", ""))
    if door is Door.DIRECT and not audience.startswith(EXCHANGE_AUDIENCE):
        yield _wrong_audience(place, audience, EXCHANGE_AUDIENCE, "Entra ID")
    elif door is not Door.DIRECT and audience != case.audience:
        yield _wrong_audience(place, audience, case.audience, "the broker")


def _token_file(pod: Json) -> str:
    return str(_variables(pod).get("AZURE_FEDERATED_TOKEN_FILE", ""))


def _token_sources(pod: Json) -> list[Json]:
    """Return what is projected to the file that the pod's variables name."""
    return [source for path, source in _tokens(pod) if path == _token_file(pod)]


def _wrong_audience(place: str, audience: str, required: str, reader: str) -> Finding:
    message = f"the token at {place} is for audience {audience or 'of the API server'}, and {reader} takes {required}"
    return problem("audience", message, f"set audience: {required} in the pod's projected volume")


def _trust(case: WorkloadCase) -> Iterator[Finding]:
    """Yield what is wrong with the CA of the token proxy: SDKs refuse two sources, and a file that is not there."""
    settings = _variables(case.pod)
    file = settings.get("AZURE_KUBERNETES_CA_FILE")
    if file is not None and "AZURE_KUBERNETES_CA_DATA" in settings:
        message = "AZURE_KUBERNETES_CA_FILE and AZURE_KUBERNETES_CA_DATA are both set: SDKs refuse that"
        yield problem("ca", message, "take one of them out of the pod")
    elif file is None and "AZURE_KUBERNETES_CA_DATA" not in settings:
        message = "neither AZURE_KUBERNETES_CA_FILE nor AZURE_KUBERNETES_CA_DATA is set: the broker cannot be verified"
        yield problem("ca", message, "mount the ConfigMap with the broker's CA, and set AZURE_KUBERNETES_CA_FILE")
    elif file is not None and not any(_is_below(file, path) for path in _mount_paths(case.pod)):
        message = f"AZURE_KUBERNETES_CA_FILE is {file}, and nothing is mounted there: SDKs refuse that"
        yield problem("ca", message, "mount the ConfigMap with the broker's CA there")


def _outcome(case: WorkloadCase, door: Door, client_id: str, *, has_fault: bool) -> Iterator[Finding]:
    account = case.account_key
    if case.account is None:
        yield problem(
            "account",
            f"service account {account} does not exist",
            f"kubectl create -n {account.namespace} serviceaccount {account.name}",
        )
        return
    if door is Door.DIRECT:
        credential = FederatedCredential(
            federation.name_of(case.issuer, account.namespace, account.name),
            case.issuer or "ISSUER",
            federation.subject_of(account.namespace, account.name),
            next((str(source.get("audience")) for source in _token_sources(case.pod)), EXCHANGE_AUDIENCE),
        )
        message = f"the pod gets a token of {client_id} where that identity trusts {credential.subject}"
        todo = f"unless it does: {federation.unplaced_command(credential)}"
        yield _without_fault(note("token", message, todo), has_fault=has_fault)
        return
    if case.is_granted is None:
        yield unknown("grant", f"whether service account {account} may use identity {client_id} could not be seen")
    elif not case.is_granted:
        message = f"service account {account} may not use identity {client_id}: the broker answers 403"
        yield problem("grant", message, grant_command(account, client_id, case.roles))
        return
    else:
        yield ok("grant", f"service account {account} may use identity {client_id}")
    switch = f"; {_SWITCH}" if door is Door.PROXY else ""
    yield _without_fault(ok("token", f"the pod gets a token of identity {client_id}{switch}"), has_fault=has_fault)


def _without_fault(finding: Finding, *, has_fault: bool) -> Finding:
    return problem("token", f"mend that first; then {finding.message}") if has_fault else finding


def grant_command(account: ObjectKey, client_id: str, roles: Sequence[str] = ()) -> str:
    """Return the command that lets a service account use an identity; `roles` are ClusterRoles that grant it."""
    name = f"identity-{client_id}-{account.namespace}-{account.name}"
    if roles:
        subject = f"--serviceaccount={account.namespace}:{account.name}"
        return f"kubectl create clusterrolebinding {name} --clusterrole={roles[0]} {subject}"
    items = [_role(client_id), _binding(name, account, client_id)]
    manifest = json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
    return f"create the ClusterRole and its ClusterRoleBinding: echo {shlex.quote(manifest)} | kubectl apply -f -"


def _role(client_id: str) -> Json:
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": f"identity-{client_id}"},
        "rules": [{"apiGroups": [GROUP], "resources": [client_id], "verbs": [VERB]}],
    }


def _binding(name: str, account: ObjectKey, client_id: str) -> Json:
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": name},
        "subjects": [{"kind": "ServiceAccount", "namespace": account.namespace, "name": account.name}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": f"identity-{client_id}"},
    }


def _spec(pod: Json) -> Json:
    return pod.get("spec") or {}


def _labels(pod: Json) -> Mapping[str, str]:
    return (pod.get("metadata") or {}).get("labels") or {}


def _container(pod: Json) -> Json:
    """Return the first container that has variables of a door; an empty one without such."""
    containers: Sequence[Json] = _spec(pod).get("containers") or ()
    return next((item for item in containers if not _DOOR_VARIABLES.isdisjoint(_environment(item))), {})


def _environment(container: Json) -> dict[str, str]:
    """Return a container's variables; "" for one whose value comes from elsewhere."""
    return {str(item.get("name")): str(item.get("value") or "") for item in container.get("env") or ()}


def _variables(pod: Json) -> dict[str, str]:
    return _environment(_container(pod))


def _mount_paths(pod: Json) -> tuple[str, ...]:
    return tuple(str(mount.get("mountPath")) for mount in _container(pod).get("volumeMounts") or ())


def _tokens(pod: Json) -> Iterator[tuple[str, Json]]:
    """Yield each service account token that the container has as a file: its path, and its source."""
    volumes = {volume.get("name"): volume for volume in _spec(pod).get("volumes") or ()}
    for mount in _container(pod).get("volumeMounts") or ():
        projected = volumes.get(mount.get("name"), {}).get("projected") or {}
        for source in projected.get("sources") or ():
            token = source.get("serviceAccountToken")
            if token:
                yield posixpath.join(str(mount.get("mountPath")), str(token.get("path", ""))), token


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")
