"""The real cluster's control plane: etcd, API server, controller manager and scheduler, with their flags.

They live in the fabric, as a managed cluster's control plane lives outside of its nodes.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from podidentity_lab.fabric import FABRIC_ADDRESS, SERVICE_NETWORK
from podidentity_lab.orchestrator import KUBERNETES_PORT
from podidentity_lab.real import kubeconfig, pki
from podidentity_lab.real.pki import Pki
from podidentity_lab.real.program import Program

ETCD = "http://127.0.0.1:2379"
ISSUER = "https://kubernetes.default.svc.cluster.local"
AUDIT_LOG = "audit.log"

# Only requests of the workloads' service accounts: tests compare what a daemon really uses with what its role allows.
_AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [
        {"level": "None", "userGroups": ["system:serviceaccounts:kube-system"]},
        {"level": "Metadata", "userGroups": ["system:serviceaccounts"]},
        {"level": "None"},
    ],
}

Command = tuple[str, Sequence[str]]
"""A component's name, and its command line."""


def commands(program: Program, keys: Pki, state: Path, logs: Path) -> Iterator[Command]:
    """Yield each component before those that need it. `state` is a directory for files that end with the lab."""
    yield "etcd", [program.component("etcd"), ETCD, str(state / "etcd")]
    yield "kube-apiserver", [program.component("kube-apiserver"), *_api_server(keys, state, logs)]
    manager = kubeconfig.write(keys, pki.CONTROLLERS, state)
    yield "kube-controller-manager", [program.component("kube-controller-manager"), *_controllers(keys, manager, state)]
    scheduler = kubeconfig.write(keys, pki.SCHEDULER, state)
    yield (
        "kube-scheduler",
        [program.component("kube-scheduler"), f"--kubeconfig={scheduler}", "--leader-elect=false", *_QUICK],
    )


_QUICK = (
    "--kube-api-qps=300",
    "--kube-api-burst=600",
)  # thousands of pods in a test shall wait for the cluster, not for a client's own limit


def _api_server(keys: Pki, state: Path, logs: Path) -> list[str]:
    policy = state / "audit-policy.json"
    policy.write_text(json.dumps(_AUDIT_POLICY))
    return [
        f"--etcd-servers={ETCD}",
        f"--cert-dir={state}",
        f"--tls-cert-file={keys.path('api.crt')}",
        f"--tls-private-key-file={keys.path('api.key')}",
        f"--client-ca-file={keys.path('ca.crt')}",
        f"--kubelet-client-certificate={keys.path('kubelet-client.crt')}",
        f"--kubelet-client-key={keys.path('kubelet-client.key')}",
        f"--token-auth-file={keys.token_file}",
        f"--service-account-issuer={ISSUER}",
        f"--service-account-key-file={keys.path('accounts.pub')}",
        f"--service-account-signing-key-file={keys.path('accounts.key')}",
        f"--secure-port={KUBERNETES_PORT}",
        f"--advertise-address={FABRIC_ADDRESS}",
        f"--service-cluster-ip-range={SERVICE_NETWORK}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        "--kubelet-preferred-address-types=InternalIP",
        f"--audit-policy-file={policy}",
        f"--audit-log-path={logs / AUDIT_LOG}",
    ]


def _controllers(keys: Pki, config: str, state: Path) -> list[str]:
    return [
        f"--kubeconfig={config}",
        f"--root-ca-file={keys.path('ca.crt')}",
        f"--service-account-private-key-file={keys.path('accounts.key')}",
        f"--flex-volume-plugin-dir={state / 'volume-plugins'}",
        "--use-service-account-credentials=true",
        "--leader-elect=false",
        *_QUICK,
    ]
