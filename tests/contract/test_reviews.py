"""Tokens of pods, and the reviews by which programs ask the API about a token or about a user's rights."""

import json
from typing import Any

import jwt

from contract.conftest import Kubectl
from waiting import until

Json = dict[str, Any]
AUDIENCE = "api://AKSIdentityBinding"


def pod(kubectl: Kubectl) -> Json:
    """Create a service account and a pod of it, and return the pod."""
    kubectl("create", "serviceaccount", "reader")
    spec = {"serviceAccountName": "reader", "nodeSelector": {"none": "x"}, "containers": [{"name": "c", "image": "c"}]}
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "reader"}, "spec": spec}
    kubectl("create", "-f", "-", stdin=body)
    return kubectl.get("pod", "reader")


def post(kubectl: Kubectl, path: str, spec: Json) -> Json:
    """Create a review and return its status."""
    group = path.rsplit("/", 2)[0].removeprefix("/apis/")
    kind = {"tokenreviews": "TokenReview", "subjectaccessreviews": "SubjectAccessReview"}[path.rsplit("/", 1)[1]]
    body = {"apiVersion": f"{group}/v1", "kind": kind, "spec": spec}
    status: Json = json.loads(kubectl("create", "--raw", path, "-f", "-", stdin=body))["status"]
    return status


def review(kubectl: Kubectl, token: str, audience: str = AUDIENCE) -> Json:
    """Return what the API says about a token."""
    return post(kubectl, "/apis/authentication.k8s.io/v1/tokenreviews", {"token": token, "audiences": [audience]})


def allowed(kubectl: Kubectl, user: str, *groups: str) -> bool:
    """Whether a user may use the managed identity `11111111-...`, a resource that no API serves."""
    attributes = {"verb": "use-managed-identity", "group": "cid.wi.aks.azure.com", "resource": IDENTITY}
    spec = {"user": user, "groups": list(groups), "resourceAttributes": attributes}
    return bool(post(kubectl, "/apis/authorization.k8s.io/v1/subjectaccessreviews", spec)["allowed"])


IDENTITY = "11111111-2222-3333-4444-555555555555"


def test_a_pods_token_is_reviewed_until_the_pod_is_gone(kubectl: Kubectl) -> None:
    """A review names audience, user, groups and pod; for another audience, a forged token or a deleted pod it fails."""
    uid = pod(kubectl)["metadata"]["uid"]
    bound = ("--bound-object-kind=Pod", "--bound-object-name=reader", f"--bound-object-uid={uid}")
    token = kubectl("create", "token", "reader", f"--audience={AUDIENCE}", *bound).strip()
    status = review(kubectl, token)
    assert (status["authenticated"], status["audiences"]) == (True, [AUDIENCE])
    user = status["user"]
    assert user["username"] == f"system:serviceaccount:{kubectl.namespace}:reader"
    assert f"system:serviceaccounts:{kubectl.namespace}" in user["groups"]
    claims = jwt.decode(token, options={"verify_signature": False})
    prefix = "authentication.kubernetes.io"
    assert user["extra"][f"{prefix}/pod-name"] == ["reader"]
    assert user["extra"][f"{prefix}/pod-uid"] == [uid] == [claims["kubernetes.io"]["pod"]["uid"]]
    assert user["extra"][f"{prefix}/credential-id"] == [f"JTI={claims['jti']}"]
    assert "typ" not in jwt.get_unverified_header(token)
    assert not review(kubectl, token, "api://other").get("authenticated")
    assert not review(kubectl, f"{token[:-8]}AAAAAAAA").get("authenticated")
    kubectl("delete", "pod", "reader", "--force", "--grace-period=0")
    until(lambda: not review(kubectl, token).get("authenticated"), "the token fails")


def test_a_deleted_pods_token_is_no_bearer_token(kubectl: Kubectl) -> None:
    """The API serves a pod's token while the pod exists, and refuses it as unauthorized afterwards."""
    uid = pod(kubectl)["metadata"]["uid"]
    bound = ("--bound-object-kind=Pod", "--bound-object-name=reader", f"--bound-object-uid={uid}")
    token = kubectl("create", "token", "reader", *bound).strip()
    account = f"--serviceaccount={kubectl.namespace}:reader"
    kubectl("create", "role", "reader", "--verb=list", "--resource=pods")
    kubectl("create", "rolebinding", "reader", "--role=reader", account)
    as_pod = ("--kubeconfig=/dev/null", *server(kubectl), f"--token={token}", "get", "pods", "--request-timeout=10s")
    until(lambda: kubectl.tried(*as_pod).returncode == 0, "the token is served")
    kubectl("delete", "pod", "reader", "--force", "--grace-period=0")
    until(lambda: "Unauthorized" in kubectl.tried(*as_pod).stderr, "the token is refused")


def server(kubectl: Kubectl) -> tuple[str, str]:
    """Return the options that lead to the server without the admin's credentials."""
    config = json.loads(kubectl("config", "view", "--raw", "--minify", "-o", "json"))
    return f"--server={config['clusters'][0]['cluster']['server']}", "--insecure-skip-tls-verify"


def test_a_token_lives_ten_minutes_at_least_and_belongs_to_its_pod(kubectl: Kubectl) -> None:
    """A shorter life is refused, and so is a missing pod, a wrong UID or another account's pod."""
    pod(kubectl)
    bound = ("--bound-object-kind=Pod", "--bound-object-name=reader")
    token = kubectl("create", "token", "reader", "--duration=600s").strip()
    claims = jwt.decode(token, options={"verify_signature": False})
    assert claims["exp"] - claims["iat"] == 600
    assert "duration less than 10 minutes" in kubectl.refused("create", "token", "reader", "--duration=599s")
    assert "UID" in kubectl.refused("create", "token", "reader", *bound, "--bound-object-uid=other")
    assert "not found" in kubectl.refused("create", "token", "reader", bound[0], "--bound-object-name=none")
    kubectl("create", "serviceaccount", "other")
    assert "cannot bind token" in kubectl.refused("create", "token", "other", *bound)


def test_a_grant_of_an_identity_is_a_rule_for_a_resource_of_its_name(kubectl: Kubectl) -> None:
    """A ClusterRole for a client ID holds for a bound account, and for a bound group that the review names."""
    name, user = kubectl.namespace, f"system:serviceaccount:{kubectl.namespace}:reader"
    rule = {"verbs": ["use-managed-identity"], "apiGroups": ["cid.wi.aks.azure.com"], "resources": [IDENTITY]}
    role = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": name}}
    assert not allowed(kubectl, user)
    kubectl("create", "-f", "-", stdin={**role, "rules": [rule]})
    group = f"system:serviceaccounts:{kubectl.namespace}"
    kubectl("create", "clusterrolebinding", name, f"--clusterrole={name}", f"--group={group}")
    until(lambda: allowed(kubectl, user, group), "the group's grant holds")
    assert not allowed(kubectl, user, "system:serviceaccounts:other")
    assert not allowed(kubectl, user)
    kubectl("create", "clusterrolebinding", f"{name}-one", f"--clusterrole={name}", f"--serviceaccount={name}:reader")
    until(lambda: allowed(kubectl, user), "the account's grant holds")
    kubectl("delete", "clusterrolebinding", name, f"{name}-one")
    until(lambda: not allowed(kubectl, user, group), "it is taken back")
    kubectl("delete", "clusterrole", name)
