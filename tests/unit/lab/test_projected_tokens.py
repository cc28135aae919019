"""A pod's projected service account token in the lab: its lifetime and its renewal."""

from pathlib import Path
from typing import Any

import jwt
import pytest

from contract.servers import TwoLines
from podidentity_lab.fabric import NodeNetwork
from podidentity_lab.kubelet import Cluster, Node, volumes
from podidentity_lab.kubelet.tokens import ProjectedTokens
from podidentity_lab.kubernetes import Kubernetes
from podidentity_lab.oci.library import Library
from podidentity_lab.oci.store import Store

Json = dict[str, Any]
AUDIENCE = "api://AzureADTokenExchange"


class Clock:
    """The lab's clock, which a test moves."""

    now = 1_800_000_000.0

    def __call__(self) -> float:
        """Return the time in seconds."""
        return self.now


def pod_of(kubernetes: Kubernetes, seconds: int) -> Json:
    """Create a service account and a pod with a projected token, and return the pod."""
    source = {"path": "azure-identity-token", "audience": AUDIENCE, "expirationSeconds": seconds}
    volume = {"name": "token", "projected": {"defaultMode": 0o640, "sources": [{"serviceAccountToken": source}]}}
    metadata = {"name": "reader", "namespace": "default"}
    kubernetes.storage.create("serviceaccounts", {"metadata": dict(metadata)})
    spec = {"serviceAccountName": "reader", "containers": [], "volumes": [volume]}
    return kubernetes.storage.create("pods", {"metadata": dict(metadata), "spec": spec})


def node_of(kubernetes: Kubernetes, clock: Clock, folder: Path) -> Node:
    """Return a node of the embedded Kubernetes, on the test's clock."""
    token, library = kubernetes.service_account_token, Library(Store(folder))
    cluster = Cluster(kubernetes.storage, token, library, "", "", folder, bridge=False, rootless=True, clock=clock)
    return Node(NodeNetwork("node-0", 0), "", folder, cluster)


def claims_of(token: str) -> Json:
    """Return what a token says."""
    claims: Json = jwt.decode(token, options={"verify_signature": False})
    return claims


def test_a_projected_token_is_renewed_at_four_fifths_of_its_life(tmp_path: Path) -> None:
    """A token is renewed after 80 % of expirationSeconds, with the key that signs then and the same mode."""
    clock = Clock()
    kubernetes = Kubernetes(TwoLines(), clock=clock)
    node, pod = node_of(kubernetes, clock, tmp_path), pod_of(kubernetes, 600)
    paths = volumes.prepare(node, pod, tmp_path / "volumes")
    tokens = ProjectedTokens(node, pod, paths)
    file = paths["token"] / "azure-identity-token"
    first = file.read_text()
    claims = claims_of(first)
    assert (claims["exp"] - claims["iat"], claims["aud"]) == (600, [AUDIENCE])
    kubernetes.rotate_token_key("publish")
    kubernetes.rotate_token_key("sign")
    clock.now += 479
    tokens.renew()
    assert file.read_text() == first
    clock.now += 1
    tokens.renew()
    second = file.read_text()
    assert claims_of(second)["exp"] == claims["exp"] + 480
    published = [key["kid"] for key in kubernetes.token_keys()["keys"]]
    assert [jwt.get_unverified_header(token)["kid"] for token in (first, second)] == published
    assert (file.stat().st_mode & 0o777, sorted(path.name for path in paths["token"].iterdir())) == (
        0o640,
        ["azure-identity-token", "ca.crt", "namespace"],
    )
    tokens.renew()
    assert file.read_text() == second


def test_a_token_of_less_than_ten_minutes_is_no_volume(tmp_path: Path) -> None:
    """A lifetime under ten minutes is an error: the real API refuses such a pod."""
    clock = Clock()
    kubernetes = Kubernetes(TwoLines(), clock=clock)
    with pytest.raises(volumes.VolumeError, match="599 is less than 10 minutes"):
        volumes.prepare(node_of(kubernetes, clock, tmp_path), pod_of(kubernetes, 599), tmp_path / "volumes")
